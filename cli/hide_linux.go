package cli

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"unsafe"
)

// hideArgs overwrites every occurrence of a secret in the memory that
// /proc/self/cmdline and ps show (invariant 9). On Linux the strings of os.Args
// lie in that memory, which a process may write; OS has copied what is still
// needed of them. Strings that lie elsewhere, because a program has set os.Args
// itself, are left alone.
func hideArgs(secrets []string) {
	start, end := argMemory()
	for _, arg := range os.Args {
		at := uintptr(unsafe.Pointer(unsafe.StringData(arg)))
		if at < start || at+uintptr(len(arg)) > end {
			continue
		}
		mem := unsafe.Slice(unsafe.StringData(arg), len(arg))
		for _, s := range secrets {
			if s == "" {
				continue
			}
			for i := bytes.Index(mem, []byte(s)); i >= 0; i = bytes.Index(mem, []byte(s)) {
				for j := range s {
					mem[i+j] = 0
				}
			}
		}
	}
}

// argMemory returns where the arguments of this process lie, from fields 48 and
// 49 of /proc/self/stat, or an empty range.
func argMemory() (start, end uintptr) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, 0
	}
	// The second field is the command's name in brackets and may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 47 {
		return 0, 0
	}
	from, err1 := strconv.ParseUint(fields[45], 10, 64)
	to, err2 := strconv.ParseUint(fields[46], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, 0
	}
	return uintptr(from), uintptr(to)
}
