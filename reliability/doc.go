// Package reliability is the proof that no fault loses an item, invents one, or
// reports success wrongly: a harness that pairs every built-in source with every
// built-in sink, a judge of what a run said against what its destination holds, and
// tests that use both under chaos (package pumptest), a breaking network (package
// faultproxy), kills, full disks and damaged files. docs/reliability.md has the
// table of faults and outcomes.
package reliability
