// Package soak copies under random faults for as long as it is told, and watches
// that memory and the number of goroutines stay what they were. It has tests only:
// go test ./reliability/soak -soak 30m -timeout 0.
package soak
