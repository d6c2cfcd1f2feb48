package doctor

import (
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// syncookies: what the kernel does with SYNs beyond the SYN queue.
func syncookies(v *view) ([]Finding, error) {
	const name = "net.ipv4.tcp_syncookies"
	n, err := v.sysctl(name)
	if err != nil {
		return nil, err
	}
	switch n {
	case 0:
		return finding(Warning, name, "0: SYN cookies are off", "a SYN beyond the SYN queue is dropped in silence, and tcp_max_syn_backlog limits that queue beside the backlog", "sysctl -w "+name+"=1"), nil
	case 2:
		return finding(Warning, name, "2: each SYN is answered with a cookie", "meant for tests: no handshake is kept in the SYN queue, so that its depth says nothing, and connections lose TCP options when the client sends no timestamps", "sysctl -w "+name+"=1"), nil
	}
	return ok(name, "%d: cookies are sent when the SYN queue is full, and only then", n), nil
}

// maxSynBacklog: with cookies on, tcp_max_syn_backlog does nothing
// (inet_csk_reqsk_queue_is_full in the kernel).
func maxSynBacklog(v *view) ([]Finding, error) {
	const name = "net.ipv4.tcp_max_syn_backlog"
	n, err := v.sysctl(name)
	if err != nil {
		return nil, err
	}
	cookies, err := v.sysctl("net.ipv4.tcp_syncookies")
	if err != nil {
		return nil, err
	}
	if cookies != 0 {
		return ok(name, "%d: without effect, as SYN cookies are on and the SYN queue's limit is the backlog", n), nil
	}
	limit, err := v.sysctl("net.core.somaxconn")
	if err != nil {
		return nil, err
	}
	var all []Finding
	for _, l := range v.listeners() {
		b := l.asked
		if b == 0 || b > limit {
			b = limit
		}
		if half := n*3/4 + 1; half < b {
			all = append(all, finding(Warning, name, fmt.Sprintf("%d: with SYN cookies off only about %d handshakes are kept for %s, whose backlog is %d", n, half, l.address, b),
				"more SYNs at once are dropped in silence, without a message", "sysctl -w net.ipv4.tcp_syncookies=1, which makes this parameter meaningless")...)
		}
	}
	if all == nil {
		return ok(name, "%d: enough for the backlog, which limits the SYN queue", n), nil
	}
	return all, nil
}

func synackRetries(v *view) ([]Finding, error) {
	const name = "net.ipv4.tcp_synack_retries"
	n, err := v.sysctl(name)
	if err != nil {
		return nil, err
	}
	switch {
	case n < 2:
		return finding(Warning, name, fmt.Sprintf("%d: a lost SYN-ACK is sent again %d times", n, n), "one or two lost packets end a sender's handshake", "sysctl -w "+name+"=5"), nil
	case n > 5:
		return finding(Note, name, fmt.Sprintf("%d: a half-open connection that gets no answer is kept for over two minutes", n), "they take room in the SYN queue, whose limit is the backlog", "sysctl -w "+name+"=5"), nil
	}
	return ok(name, "%d", n), nil
}

func abortOnOverflow(v *view) ([]Finding, error) {
	const name = "net.ipv4.tcp_abort_on_overflow"
	n, err := v.sysctl(name)
	if err != nil {
		return nil, err
	}
	if n != 0 {
		return finding(Warning, name, fmt.Sprintf("%d: a sender whose handshake ends while the accept queue is full gets a reset", n),
			"without it the kernel waits and the burst passes unseen by senders; SYNs are dropped in silence either way", "sysctl -w "+name+"=0"), nil
	}
	return ok(name, "0: a full accept queue makes senders wait, not fail"), nil
}

func twReuse(v *view) ([]Finding, error) {
	const name = "net.ipv4.tcp_tw_reuse"
	n, err := v.sysctl(name)
	if err != nil {
		return nil, err
	}
	return ok(name, "%d: without effect on what weir receives, it is about outgoing connections; it may matter on senders and load balancers", n), nil
}

// twRecycle: the parameter broke senders behind NAT and went with Linux 4.12;
// files that still set it make sysctl --system fail.
func twRecycle(v *view) ([]Finding, error) {
	const name = "net.ipv4.tcp_tw_recycle"
	n, err := v.sysctl(name)
	switch {
	case err == nil && n != 0:
		return finding(Error, name, fmt.Sprintf("%d", n), "SYNs of several senders behind one NAT address or load balancer are dropped at random, since their timestamps differ", "sysctl -w "+name+"=0"), nil
	case err == nil:
		return ok(name, "0"), nil
	case !absent(err):
		return nil, err
	}
	files, _ := fs.Glob(v.Root, "etc/sysctl.d/*.conf")
	for _, path := range append(files, "etc/sysctl.conf") {
		text, err := v.read(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(text) {
			key, _, _ := strings.Cut(line, "=")
			if strings.ReplaceAll(strings.TrimSpace(key), "/", ".") == name {
				return finding(Note, "/"+path, "sets tcp_tw_recycle, which this kernel no longer has", "it does nothing but make sysctl report an error", "remove the line"), nil
			}
		}
	}
	return ok(name, "not there: removed from Linux 4.12 on"), nil
}

// migrateReq matters where several sockets share a port (SO_REUSEPORT).
func migrateReq(v *view) ([]Finding, error) {
	const name = "net.ipv4.tcp_migrate_req"
	shared := 0
	for _, s := range v.Config.Sources {
		if n, err := strconv.Atoi(s.Params["listeners"]); err == nil && n > 1 {
			shared = max(shared, n)
		}
	}
	for _, l := range v.listeners() {
		if n := len(v.socketsOf(l.address)); n > 1 {
			shared = max(shared, n)
		}
	}
	if shared == 0 {
		return ok(name, "without effect: one listener for each address"), nil
	}
	n, err := v.sysctl(name)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return finding(Warning, name, fmt.Sprintf("0, and %d listeners share a port", shared), "when one of them is closed, all connections in its queue are reset instead of moving to the others", "sysctl -w "+name+"=1"), nil
	}
	return ok(name, "%d: connections move when one of %d listeners is closed", n, shared), nil
}

// portRange: an outgoing connection may take weir's port while weir is away.
func portRange(v *view) ([]Finding, error) {
	const name = "net.ipv4.ip_local_port_range"
	text, err := v.read("proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return nil, err
	}
	var low, high int
	if _, err := fmt.Sscan(text, &low, &high); err != nil {
		return nil, fmt.Errorf("%s: %q: %w", name, text, err)
	}
	reserved, err := v.reservedPorts()
	if err != nil {
		return nil, err
	}
	var taken []string
	for _, p := range append(v.ports(), v.Config.Monitor.Port) {
		if p >= low && p <= high && !isReserved(reserved, p) {
			taken = append(taken, strconv.Itoa(p))
		}
	}
	if len(taken) > 0 {
		return finding(Warning, name, fmt.Sprintf("%d to %d covers %s", low, high, strings.Join(taken, " and ")),
			"while weir is away, any outgoing connection of this host may get the port, and weir cannot start", "sysctl -w net.ipv4.ip_local_reserved_ports="+reservedWith(reserved, taken)), nil
	}
	return ok(name, "%d to %d, none of weir's ports without reservation", low, high), nil
}

func (v *view) reservedPorts() (string, error) {
	text, err := v.read("proc/sys/net/ipv4/ip_local_reserved_ports")
	if absent(err) {
		return "", nil
	}
	return strings.TrimSpace(text), err
}

func reservedWith(reserved string, ports []string) string {
	return strings.Trim(reserved+","+strings.Join(ports, ","), ",")
}

// isReserved reads a list such as 8080,9000-9100.
func isReserved(list string, port int) bool {
	return slices.ContainsFunc(strings.Split(list, ","), func(item string) bool {
		from, to, isRange := strings.Cut(item, "-")
		a, err := strconv.Atoi(from)
		if !isRange {
			return err == nil && a == port
		}
		b, err2 := strconv.Atoi(to)
		return err == nil && err2 == nil && a <= port && port <= b
	})
}

// conntrack: a full table drops packets of new connections.
func conntrack(v *view) ([]Finding, error) {
	const name = "net.netfilter.nf_conntrack_max"
	limit, err := v.sysctl(name)
	if absent(err) {
		return ok(name, "connection tracking is not loaded"), nil
	}
	if err != nil {
		return nil, err
	}
	count, err := v.sysctl("net.netfilter.nf_conntrack_count")
	if err != nil {
		return nil, err
	}
	found := fmt.Sprintf("%d of %d connections are tracked", count, limit)
	mend := fmt.Sprintf("sysctl -w %s=%d, or no tracking for weir's ports (nft: notrack)", name, max(4*limit, 4*v.maxConnections()))
	switch {
	case count >= limit:
		return finding(Error, name, found, "the table is full: SYNs are dropped before they reach the listener, and no counter of TCP tells", mend), nil
	case float64(count) > queueHigh*float64(limit):
		return finding(Warning, name, found, "once the table is full, SYNs are dropped before they reach the listener, and no counter of TCP tells", mend), nil
	case limit < v.maxConnections():
		return finding(Warning, name, fmt.Sprintf("%s, and max_connections is %d", found, v.maxConnections()), "the table is full before weir's own limit; each closed heartbeat connection stays in it for two minutes", mend), nil
	}
	return ok(name, "%s", found), nil
}

// Parts of all packets from which drops are worth a word.
const (
	squeezedPart = 1e-3
	nicDropPart  = 1e-4
)

// softnet: packets that the kernel's receive queue of a CPU could not take
// (/proc/net/softnet_stat, softnet_seq_show in the kernel).
func softnet(v *view) ([]Finding, error) {
	text, err := v.netFile("softnet_stat")
	if err != nil {
		return nil, err
	}
	var processed, dropped, squeezed uint64
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		for i, sum := range []*uint64{&processed, &dropped, &squeezed} {
			n, err := strconv.ParseUint(f[i], 16, 32)
			if err != nil {
				return nil, fmt.Errorf("/proc/net/softnet_stat: %w", err)
			}
			*sum += n
		}
	}
	switch {
	case dropped > 0:
		// A network namespace may not have it.
		limit, err := v.sysctl("net.core.netdev_max_backlog")
		found := fmt.Sprintf("%d of %d packets dropped since boot", dropped, processed)
		if err == nil {
			found += fmt.Sprintf(", net.core.netdev_max_backlog is %d", limit)
		}
		return finding(Warning, "/proc/net/softnet_stat", found,
			"packets came faster than the CPUs took them from the queue: SYNs, heartbeats and data among them", fmt.Sprintf("sysctl -w net.core.netdev_max_backlog=%d, and spread interrupts (RSS, RPS)", max(4*limit, 4000))), nil
	case float64(squeezed) > squeezedPart*float64(processed):
		return finding(Note, "/proc/net/softnet_stat", fmt.Sprintf("the receive softirq ran out of its budget %d times for %d packets", squeezed, processed), "packets waited, none was dropped", "sysctl -w net.core.netdev_budget=600"), nil
	}
	return ok("/proc/net/softnet_stat", "no packet of %d dropped", processed), nil
}

// nic: what the interfaces dropped (/proc/net/dev).
func nic(v *view) ([]Finding, error) {
	text, err := v.netFile("dev")
	if err != nil {
		return nil, err
	}
	var all []Finding
	for line := range strings.Lines(text) {
		name, rest, found := strings.Cut(line, ":")
		f := strings.Fields(rest)
		name = strings.TrimSpace(name)
		if !found || len(f) < 16 || name == "lo" {
			continue
		}
		var n [5]uint64 // bytes packets errs drop fifo
		for i := range n {
			if n[i], err = strconv.ParseUint(f[i], 10, 64); err != nil {
				return nil, fmt.Errorf("/proc/net/dev: %s: %w", name, err)
			}
		}
		packets, errs, drop, fifo := n[1], n[2], n[3], n[4]
		switch {
		case fifo > 0 || errs > 0:
			all = append(all, finding(Warning, name, fmt.Sprintf("of %d packets received, %d overran the ring, %d had errors", packets, fifo, errs),
				"lost SYNs cost senders a second, lost data slows every connection", "ethtool -S "+name+"; a larger ring: ethtool -G "+name+" rx 4096")...)
		case float64(drop) > nicDropPart*float64(packets):
			all = append(all, finding(Note, name, fmt.Sprintf("of %d packets received, %d dropped", packets, drop), "packets of unknown protocols count too; if it grows under load, it is too few buffers", "ethtool -S "+name)...)
		default:
			all = append(all, ok(name, "%d packets received, %d dropped", packets, drop)...)
		}
	}
	if all == nil {
		return ok("/proc/net/dev", "no interface but loopback"), nil
	}
	return all, nil
}

// udpBuffers: heartbeats that found no room (/proc/net/udp, column drops).
func udpBuffers(v *view) ([]Finding, error) {
	var dropped, waiting uint64
	for _, file := range []string{"udp", "udp6"} {
		text, err := v.netFile(file)
		if absent(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			if len(f) < 13 || !strings.HasSuffix(f[0], ":") {
				continue
			}
			_, hexPort, _ := strings.Cut(f[1], ":")
			p, err := strconv.ParseUint(hexPort, 16, 16)
			if err != nil || !slices.Contains(v.ports(), int(p)) {
				continue
			}
			_, rx, _ := strings.Cut(f[4], ":")
			n, _ := strconv.ParseUint(rx, 16, 64)
			d, _ := strconv.ParseUint(f[12], 10, 64)
			waiting, dropped = waiting+n, dropped+d
		}
	}
	if dropped > 0 {
		return finding(Warning, "UDP heartbeats", fmt.Sprintf("%d datagrams were dropped at weir's port, %d bytes wait", dropped, waiting),
			"a sender whose heartbeats stay without an answer takes weir for dead and sends elsewhere", "sysctl -w net.core.rmem_default=1048576, then restart weir"), nil
	}
	text, err := v.netFile("snmp")
	if err != nil {
		return nil, err
	}
	if n := counters(text, "Udp:")["RcvbufErrors"]; n > 0 {
		return finding(Note, "UDP", fmt.Sprintf("RcvbufErrors %d, none of them at weir's port as it is open now", n), "other sockets of this network namespace, or weir before a restart", ""), nil
	}
	return ok("UDP heartbeats", "no datagram was dropped"), nil
}
