package recovery

// Action is what the plan has for a vbucket.
type Action string

// The actions.
const (
	ActionCreate  Action = "create"  // make it a replica at its owner, transfer, verify, activate, publish
	ActionResume  Action = "resume"  // it is a replica at its owner already: transfer, verify, activate, publish
	ActionPublish Action = "publish" // it is active at its owner already: verify, publish
	ActionLeave   Action = "leave"   // it cannot be recovered now; Err says why
)

// Step is what the plan has for one vbucket.
type Step struct {
	VBucket          uint16 `json:"vbucket"`
	Action           Action `json:"action"`
	Source           string `json:"source,omitempty"`       // KV address of the node that holds it active
	SourceItems      uint64 `json:"source_items,omitempty"` // live items there
	Destination      string `json:"destination,omitempty"`  // KV address of its owner, "" where it is to be created
	DestinationItems uint64 `json:"destination_items,omitempty"`
	Reason           string `json:"reason,omitempty"` // of ActionLeave

	err error
}

// Plan is what a recovery is going to do. Making it changes nothing.
type Plan struct {
	Dialect           string   `json:"api"`
	Source            string   `json:"source"`
	SourceBucket      string   `json:"source_bucket"`
	Destination       string   `json:"destination"`
	DestinationBucket string   `json:"destination_bucket"`
	VBuckets          int      `json:"vbuckets"`              // of each bucket
	Missing           []uint16 `json:"missing"`               // everything that the destination misses
	NotMissing        []uint16 `json:"not_missing,omitempty"` // asked for but present: left alone
	NotAsked          []uint16 `json:"not_asked,omitempty"`   // missing, but not in the list of vbuckets
	AddNode           string   `json:"add_node,omitempty"`
	RemoveNode        string   `json:"remove_node,omitempty"`
	Replaced          bool     `json:"replaced,omitempty"` // an earlier run has replaced the node
	// Running is the uuid of a recovery that is under way at the destination, of
	// the bucket RunningBucket.
	Running       string `json:"running,omitempty"`
	RunningBucket string `json:"running_bucket,omitempty"`
	// Holes are vbuckets that are active at the destination and empty, while the
	// source holds items: they are not missing any more, and are lost.
	Holes  []uint16 `json:"holes,omitempty"`
	Engine *Engine  `json:"transfer,omitempty"` // nil when nothing is missing
	Steps  []Step   `json:"steps"`
}

// Nothing reports that no vbucket is to be recovered.
func (p *Plan) Nothing() bool { return len(p.Steps) == 0 }

// With lists the vbuckets that have one of the actions, sorted.
func (p *Plan) With(actions ...Action) []uint16 {
	var out []uint16
	for i := range p.Steps {
		for _, a := range actions {
			if p.Steps[i].Action == a {
				out = append(out, p.Steps[i].VBucket)
			}
		}
	}
	return out
}

// Items is the number of live items that the source holds in the vbuckets that
// are to be transferred.
func (p *Plan) Items() uint64 {
	var n uint64
	for i := range p.Steps {
		if a := p.Steps[i].Action; a == ActionCreate || a == ActionResume {
			n += p.Steps[i].SourceItems
		}
	}
	return n
}
