package cli

import (
	"bytes"
	"os"
	"slices"
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

// hideEnv overwrites the values of variables in the memory that /proc/self/environ
// shows (invariant 9). The program has its own copy of the environment, which
// stays as it is; where the memory cannot be written nothing happens.
func hideEnv(names []string) {
	fields := statFields()
	if len(fields) < 49 {
		return
	}
	start, err1 := strconv.ParseInt(fields[47], 10, 64)
	end, err2 := strconv.ParseInt(fields[48], 10, 64)
	const most = 64 << 20 // more than the kernel takes
	if err1 != nil || err2 != nil || end <= start || end-start > most {
		return
	}
	mem, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer mem.Close()
	env := make([]byte, end-start)
	if _, err := mem.ReadAt(env, start); err != nil {
		return
	}
	for at := 0; at < len(env); {
		entry := env[at:]
		if n := bytes.IndexByte(entry, 0); n >= 0 {
			entry = entry[:n]
		}
		name, value, ok := bytes.Cut(entry, []byte("="))
		if ok && slices.Contains(names, string(name)) {
			_, _ = mem.WriteAt(make([]byte, len(value)), start+int64(at+len(entry)-len(value)))
		}
		at += len(entry) + 1
	}
}

// argMemory returns where the arguments of this process lie, from fields 48 and
// 49 of /proc/self/stat, or an empty range.
func argMemory() (start, end uintptr) {
	fields := statFields()
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

// statFields returns the fields of /proc/self/stat from the third on, nil if they
// cannot be read.
func statFields() []string {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return nil
	}
	// The second field is the command's name in brackets and may hold anything.
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
}
