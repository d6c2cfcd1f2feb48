package load

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// measured is what /proc says of the server and of the kernel at one moment.
type measured struct {
	cpu      float64 // seconds of the server
	rss, hwm int64   // bytes
	own      float64 // seconds of this process
	kernel   map[string]uint64
}

// kernelCounters are the counters that tell of connections in trouble
// (/proc/net/netstat, TcpExt; RetransSegs of /proc/net/snmp).
var kernelCounters = []string{"TCPSynRetrans", "ListenOverflows", "ListenDrops", "TCPReqQFullDoCookies",
	"TCPReqQFullDrop", "SyncookiesSent", "TCPTimeouts", "TCPRcvQDrop", "RetransSegs"}

// clockTicks is USER_HZ, 100 on every Linux that Go runs on (proc(5)).
const clockTicks = 100

func measure(pid int) (measured, error) {
	m := measured{kernel: map[string]uint64{}}
	for _, file := range []string{"/proc/self/net/netstat", "/proc/self/net/snmp"} {
		b, err := os.ReadFile(file)
		if err != nil {
			return m, fmt.Errorf("kernel counters: %w", err)
		}
		var names []string
		for line := range strings.Lines(string(b)) { // a line of names, one of values
			f := strings.Fields(line)
			if len(names) == len(f) && len(f) > 0 && names[0] == f[0] {
				for i := 1; i < len(f); i++ {
					if n, err := strconv.ParseUint(f[i], 10, 64); err == nil {
						m.kernel[names[i]] = n
					}
				}
				names = nil
				continue
			}
			names = f
		}
	}
	var err error
	if m.own, err = CPUSeconds("self"); err != nil || pid == 0 {
		return m, err
	}
	if m.cpu, err = CPUSeconds(strconv.Itoa(pid)); err != nil {
		return m, fmt.Errorf("--pid %d: %w", pid, err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, fmt.Errorf("--pid %d: %w", pid, err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch n, _ := strconv.ParseInt(f[1], 10, 64); f[0] {
		case "State:":
			if f[1] == "Z" { // its numbers are gone, though its parent has not waited for it
				return m, fmt.Errorf("--pid %d: the process has ended", pid)
			}
		case "VmRSS:":
			m.rss = n << 10
		case "VmHWM:":
			m.hwm = n << 10
		}
	}
	return m, nil
}

// CPUSeconds is user and system time that a process has used, in seconds;
// pid is its number, or "self" (proc_pid_stat(5)). It fails if there is no such
// process.
func CPUSeconds(pid string) (float64, error) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, err
	}
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%s/stat: %d fields", pid, len(f))
	}
	user, err1 := strconv.ParseUint(f[11], 10, 64)
	system, err2 := strconv.ParseUint(f[12], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("/proc/%s/stat: no numbers: %q %q", pid, f[11], f[12])
	}
	return float64(user+system) / clockTicks, nil
}
