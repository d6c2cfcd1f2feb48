package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weir/netopt"
)

// usualBacklog is the kernel's own default of net.core.somaxconn (Linux 5.4);
// less was left behind by an older configuration or a container.
const usualBacklog = 4096

// backlog compares what is asked, what the kernel allows, and what a listener
// has (listen(2)).
func backlog(v *view) ([]Finding, error) {
	limit, err := v.sysctl("net.core.somaxconn")
	if err != nil {
		return nil, err
	}
	var all []Finding
	for _, l := range v.listeners() {
		all = append(all, backlogOf(v, l, limit)...)
	}
	return all, nil
}

func backlogOf(v *view, l listener, limit int) []Finding {
	granted := l.granted
	raise := func(n int) string { return fmt.Sprintf("sysctl -w net.core.somaxconn=%d", n) }
	reload := ", then reload weir (SIGHUP), which calls listen(2) again and loses nothing"
	switch {
	case l.asked > limit && !l.short:
		return finding(Error, l.address, fmt.Sprintf("backlog %d is asked, net.core.somaxconn allows %d", l.asked, limit),
			"weir does not start with less than it is told to ask for", raise(l.asked)+" (and a file in /etc/sysctl.d, see --sysctl), or on_backlog_mismatch warn")
	case l.asked > limit:
		return finding(Warning, l.address, fmt.Sprintf("backlog %d is asked, net.core.somaxconn allows %d", l.asked, limit),
			fmt.Sprintf("connection %d that waits at once is dropped in silence; its sender tries again a second later", limit+2), raise(l.asked)+reload)
	case granted > 0 && granted < max(l.asked, min(limit, usualBacklog)):
		return finding(Warning, l.address, fmt.Sprintf("the listener has a backlog of %d, although net.core.somaxconn allows %d now", granted, limit),
			"a raised somaxconn takes effect only when listen(2) is called again", "systemctl reload weir, or kill -HUP of its process")
	}
	effective := l.effective(limit)
	if effective < min(l.max, 1024) {
		mend := raise(usualBacklog)
		if l.asked > 0 {
			mend = fmt.Sprintf("backlog %d in the <source>", min(limit, usualBacklog))
			if limit < usualBacklog {
				mend = raise(usualBacklog) + " and " + fmt.Sprintf("backlog %d in the <source>", usualBacklog)
			}
		}
		return finding(Warning, l.address, fmt.Sprintf("the backlog is %d, limited by %s", effective, limitedBy(l, limit)),
			fmt.Sprintf("max_connections is %d: when that many senders come back at once, all beyond %d are dropped in silence and wait a second or more", l.max, effective+1), mend+reload)
	}
	return ok(l.address, "backlog %d (net.core.somaxconn %d)", effective, limit)
}

func limitedBy(l listener, limit int) string {
	if l.asked > 0 && l.asked <= limit {
		return "the configuration"
	}
	return fmt.Sprintf("net.core.somaxconn=%d", limit)
}

// queueHigh is the part of the backlog at which an accept queue is too full.
const queueHigh = 0.8

// acceptQueue looks at the accept queues as they are now.
func acceptQueue(v *view) ([]Finding, error) {
	var all []Finding
	for _, l := range v.listeners() {
		for _, s := range v.socketsOf(l.address) {
			found := fmt.Sprintf("%d connections wait, the backlog is %d", s.Depth, s.Backlog)
			switch {
			case s.Depth > s.Backlog:
				all = append(all, finding(Error, l.address, found+": it is full", "each SYN that arrives now is dropped in silence",
					"find what keeps weir from accepting (weir status, its CPU, max_connections), or raise the backlog")...)
			case float64(s.Depth) > queueHigh*float64(s.Backlog):
				all = append(all, finding(Warning, l.address, found, "a little more and SYNs are dropped", "find what keeps weir from accepting (weir status), or raise the backlog")...)
			default:
				all = append(all, ok(l.address, "%s", found)...)
			}
		}
	}
	return all, nil
}

// listenOverflows looks at what the kernel has counted since boot, and which
// listeners it was.
func listenOverflows(v *view) ([]Finding, error) {
	text, err := v.netFile("netstat")
	if err != nil {
		return nil, err
	}
	c := counters(text, "TcpExt:")
	if _, found := c["ListenOverflows"]; !found {
		return nil, errors.New("no ListenOverflows in /proc/net/netstat")
	}
	var counted []string
	for _, name := range []string{"ListenOverflows", "ListenDrops", "TCPReqQFullDoCookies", "TCPReqQFullDrop"} {
		if c[name] > 0 {
			counted = append(counted, fmt.Sprintf("%s %d", name, c[name]))
		}
	}
	// sk_drops counts strays as well: it attributes, ListenOverflows confirms.
	ours, mine := false, v.ports()
	var who []string
	for _, s := range v.sockets {
		if s.Drops == 0 && s.Depth <= s.Backlog {
			continue
		}
		ours = ours || slices.Contains(mine, int(s.Addr.Port()))
		who = append(who, fmt.Sprintf("%v dropped %d (queue %d of %d)", s.Addr, s.Drops, s.Depth, s.Backlog))
	}
	switch {
	case len(counted) == 0:
		return ok("", "no listener of this network namespace has overflowed since boot"), nil
	case ours:
		return finding(Warning, "", strings.Join(counted, ", ")+"; by listener: "+strings.Join(who, ", "),
			"weir's own listener has dropped connections: its senders waited a second or more, or lost data if they do not retry",
			"raise the backlog to what weir doctor --senders computes; watch weir_queue_dropped_total"), nil
	case len(who) > 0:
		return finding(Note, "", strings.Join(counted, ", ")+"; by listener: "+strings.Join(who, ", "),
			"other listeners than weir's; the counters are those of the whole network namespace", ""), nil
	}
	return finding(Note, "", strings.Join(counted, ", ")+"; no listener that is open now has drops",
		"it was a socket that is closed by now, perhaps weir before a restart; the counters are since boot, what matters is whether they grow: nstat -az TcpExtListenOverflows", ""), nil
}

// counters reads the two lines of a table of /proc/net/netstat or snmp: names,
// then values.
func counters(text, table string) map[string]uint64 {
	c := map[string]uint64{}
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != table {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i := 1; i < min(len(f), len(names)); i++ {
			if n, err := strconv.ParseUint(f[i], 10, 64); err == nil {
				c[names[i]] = n
			}
		}
		break
	}
	return c
}

// portInUse looks for another owner of the ports.
func portInUse(v *view) ([]Finding, error) {
	var all []Finding
	for _, l := range v.listeners() {
		var sockets []netopt.ListenSocket
		for _, s := range v.sockets {
			if conflict(l.address, s) {
				sockets = append(sockets, s)
			}
		}
		if len(sockets) == 0 {
			if v.Running == nil {
				all = append(all, ok(l.address, "the port is free")...)
			}
			continue
		}
		for _, s := range sockets {
			all = append(all, v.owner(l.address, s)...)
		}
	}
	return all, nil
}

// conflict reports whether a listener at address cannot be where s is: the same
// address, or a wildcard on either side that takes in the other (bind(2)).
func conflict(address string, s netopt.ListenSocket) bool {
	if sameAddress(address, s.Addr.String()) {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	ip, parseErr := netip.ParseAddr(host)
	if err != nil || parseErr != nil || port(address) != int(s.Addr.Port()) {
		return false
	}
	ip, other := ip.Unmap(), s.Addr.Addr().Unmap()
	if ip.Is4() == other.Is4() {
		return ip.IsUnspecified() || other.IsUnspecified()
	}
	// An IPv6 wildcard takes IPv4 as well, unless it says no. weir's does.
	return other.Is6() && other.IsUnspecified() && !s.V6Only || ip.Is6() && ip.IsUnspecified()
}

// fromKernel finds a weir whose status endpoint does not answer by its sockets;
// nil if there is none, or if it cannot be read whose they are.
func (v *view) fromKernel() *Running {
	var r *Running
	for _, l := range v.listeners() {
		for _, s := range v.socketsOf(l.address) {
			if pid, name := v.holder(s.Inode); name == "weir" {
				if r == nil {
					r = &Running{PID: pid, Silent: true}
				}
				r.Listeners = append(r.Listeners, RunningListener{Address: s.Addr.String(), Granted: s.Backlog})
			}
		}
	}
	return r
}

func (v *view) owner(address string, s netopt.ListenSocket) []Finding {
	pid, name := v.holder(s.Inode)
	ss := fmt.Sprintf("ss -ltnp 'sport = :%d'", s.Addr.Port())
	if at := s.Addr.String(); !sameAddress(address, at) {
		address += " (" + at + ")"
	}
	switch {
	case v.Running != nil && v.Running.Silent && pid == v.Running.PID:
		return finding(Note, address, fmt.Sprintf("weir listens there, process %d, and its status endpoint does not answer at %s", pid, v.Config.Monitor.Address()),
			"what that weir has was read from the kernel alone", "give the configuration that it runs with (-c)")
	case v.Running != nil && (pid == v.Running.PID || pid == 0):
		return ok(address, "weir listens there, process %d", v.Running.PID)
	case pid == 0:
		return finding(Warning, address, fmt.Sprintf("a process of user %d listens there; which one cannot be read without root", s.UID),
			"weir cannot listen where another process does", "as root: "+ss+", then stop it or choose another port")
	case name == "systemd":
		return ok(address, "systemd holds the socket for weir (weir.socket)")
	}
	return finding(Error, address, fmt.Sprintf("%s listens there, process %d", name, pid), "weir cannot start: the port is taken", "stop it, or choose another port; "+ss)
}

// holder finds the process that has the socket, 0 if that cannot be read.
func (v *view) holder(inode uint32) (pid int, name string) {
	want := fmt.Sprintf("socket:[%d]", inode)
	processes, err := fs.ReadDir(v.Root, "proc")
	if err != nil {
		return 0, ""
	}
	for _, p := range processes {
		n, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := "proc/" + p.Name() + "/fd"
		files, err := fs.ReadDir(v.Root, dir)
		if err != nil { // another user's, or gone
			continue
		}
		for _, f := range files {
			if to, err := fs.ReadLink(v.Root, dir+"/"+f.Name()); err == nil && to == want {
				comm, _ := v.read("proc/" + p.Name() + "/comm")
				// A socket that systemd passed is its own as well: name weir.
				if c := strings.TrimSpace(comm); pid == 0 || name == "systemd" {
					pid, name = n, c
				}
			}
		}
	}
	return pid, name
}

// kernelLogLines looks for the kernel's message about a full SYN queue.
func kernelLogLines(v *view) ([]Finding, error) {
	lines, err := v.KernelLog()
	if err != nil {
		return finding(Note, "/dev/kmsg", "the kernel log could not be read: "+oneLine(err),
			"a message about SYN flooding would be there, once for each listening socket", "as root: dmesg | grep -i 'SYN flooding'"), nil
	}
	var ours, others []string
	for _, line := range lines {
		if !strings.Contains(line, "SYN flooding on port") {
			continue
		}
		if slices.ContainsFunc(v.ports(), func(p int) bool { return namesPort(line, p) }) {
			ours = append(ours, line)
		} else {
			others = append(others, line)
		}
	}
	switch {
	case len(ours) > 0:
		return finding(Warning, "/dev/kmsg", fmt.Sprintf("%q (%d such lines)", ours[len(ours)-1], len(ours)),
			"rarely an attack: more handshakes were under way than the backlog of that listener, which is the limit of its SYN queue too; the kernel prints it once for each socket, so that silence afterwards means nothing",
			"raise backlog and net.core.somaxconn; tcp_max_syn_backlog does not help"), nil
	case len(others) > 0:
		return finding(Note, "/dev/kmsg", fmt.Sprintf("%q (%d such lines, other ports)", others[len(others)-1], len(others)), "not weir's ports, or of another network namespace: the log is one for all", ""), nil
	}
	return ok("/dev/kmsg", "no message about SYN flooding"), nil
}

// namesPort reports whether a line is about the port: "on port 24224." or, in
// newer kernels, "on port 0.0.0.0:24224.".
func namesPort(line string, port int) bool {
	_, rest, _ := strings.Cut(line, "on port ")
	where, _, _ := strings.Cut(rest, " ")
	where = strings.TrimRight(where, ".")
	p := strconv.Itoa(port)
	return where == p || strings.HasSuffix(where, ":"+p) || strings.HasSuffix(where, "."+p)
}

// SmallestBacklog is the smallest backlog that a listener has or would get, 0
// if that cannot be read.
func SmallestBacklog(m *Machine, t Target) int {
	v := &view{Context: context.Background(), Machine: m, Target: t}
	limit, err := v.sysctl("net.core.somaxconn")
	if err != nil {
		return 0
	}
	smallest := 0
	for _, l := range v.listeners() {
		if n := l.effective(limit); smallest == 0 || n < smallest {
			smallest = n
		}
	}
	return smallest
}

// effective is the backlog that the listener has, or would get.
func (l listener) effective(somaxconn int) int {
	switch {
	case l.granted > 0:
		return l.granted
	case l.asked > 0:
		return min(l.asked, somaxconn)
	}
	return somaxconn
}
