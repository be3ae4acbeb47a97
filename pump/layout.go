package pump

import (
	"context"
	"fmt"
)

// VBucketCounter is a source or sink whose items stay in their vbuckets and that
// knows how many there are; 0 means that it does not know, or does not mind. It is
// an optional ability, found with As.
type VBucketCounter interface {
	VBucketCount(ctx context.Context) (int, error)
}

// CheckLayout returns an error of wrong use when source and sink both say how many
// vbuckets they have, and differ: a write of the first item would fail.
func CheckLayout(ctx context.Context, source Source, sink Sink) error {
	from, ok := As[VBucketCounter](source)
	if !ok {
		return nil
	}
	to, ok := As[VBucketCounter](sink)
	if !ok {
		return nil
	}
	have, err := from.VBucketCount(ctx)
	if err != nil || have == 0 {
		return err
	}
	want, err := to.VBucketCount(ctx)
	if err != nil || want == 0 || want == have {
		return err
	}
	return &Error{Class: ClassUsage, Code: "vbucket-mismatch", Op: "compare source and destination",
		Err:  fmt.Errorf("the source has %d vbuckets and the destination has %d", have, want),
		Hint: "source and destination have different numbers of vbuckets: use -x rehash=true"}
}
