//go:build !linux

package cli

// hideArgs does nothing where the arguments of a process cannot be overwritten.
func hideArgs([]string) {}

// hideEnv does nothing where the environment of a process cannot be overwritten.
func hideEnv([]string) {}
