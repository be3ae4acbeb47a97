package pump

import (
	"fmt"
	"strings"
)

// Loss is a part of items that a destination has no place for. The items are
// written and count as done, but without it.
type Loss struct {
	Part  string // "CAS", "revision": of the items
	Items uint64 // that had it
}

// Loser is a sink that does not keep every part of an item, and counts what it
// leaves out. Run asks it once at the end and names it in a warning and in the
// report, so that nothing is left out in silence. It is an optional ability, found
// with As.
type Loser interface {
	Losses() []Loss
}

// lost has the sink say what it left out.
func (e *engine) lost() []Loss {
	l, ok := As[Loser](e.cfg.Sink)
	if !ok {
		return nil
	}
	all := l.Losses()
	if len(all) == 0 {
		return nil
	}
	parts := make([]string, len(all))
	for i, p := range all {
		parts[i] = fmt.Sprintf("%s (%d)", p.Part, p.Items)
	}
	e.cfg.Log.Warn("the destination has no place for parts of the items that were written; the number is that of the items which had them", "parts", strings.Join(parts, ", "))
	return all
}
