//go:build unix

package cli

import "syscall"

// leaveNoCore keeps the system from writing this process's memory to a file when it
// crashes: the passwords that it logs in with are in there (invariant 9). Where cores
// go to a program the limit is for that program to respect, as systemd-coredump does.
func leaveNoCore() {
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}) // lowering it is always allowed
}
