package doctor

import (
	"fmt"
	"math"

	"weir/internal/fleet"
)

// fleetNeeds compares the machine with what the given fleet needs.
func fleetNeeds(v *view) ([]Finding, error) {
	r := v.Fleet
	if r == nil {
		return nil, nil
	}
	f := r.Fleet
	who := fmt.Sprintf("%d senders", f.Senders)
	limit, err := v.sysctl("net.core.somaxconn")
	if err != nil {
		return nil, err
	}
	var all []Finding
	add := func(s Severity, subject, found, why, mend string) {
		all = append(all, finding(s, subject, found, why, mend)...)
	}
	for _, l := range v.listeners() {
		effective := l.effective(limit)
		found := fmt.Sprintf("the backlog is %d, %s need %d (peak %d when nothing is accepted for %v, %d when all come back)", effective, who, r.Backlog, r.Stalled.Peak, f.Stall, r.Storm.Peak)
		if effective >= r.Backlog {
			all = append(all, ok(l.address, "%s", found)...)
			continue
		}
		why := "the margin is too small: a stall a little longer, and SYNs are dropped in silence"
		severity := Warning
		if here := r.StalledHere; here != nil && here.Drops+r.StormHere.Drops > 0 {
			severity = Error
			why = fmt.Sprintf("with this backlog, a stall: %s; all come back at once: %s", here, r.StormHere)
		}
		mend := ""
		if limit < r.Backlog {
			mend = fmt.Sprintf("sysctl -w net.core.somaxconn=%d and ", r.Backlog)
		}
		add(severity, l.address, found, why, mend+fmt.Sprintf("backlog %d in the <source>, then reload weir (SIGHUP)", r.Backlog))
	}
	if n := v.maxConnections(); n < r.Open {
		add(Error, "max_connections", fmt.Sprintf("%d, %s have up to %d open", n, who, r.Open), "weir refuses what is beyond", fmt.Sprintf("max_connections %d in the <source>", r.Open+r.Open/4))
	}
	if n, where, err := v.rlimit("Max open files", "LimitNOFILE"); err == nil && n < int64(r.Descriptors) {
		add(Error, "RLIMIT_NOFILE", fmt.Sprintf("%d (%s), %s need %d", n, where, who, r.Descriptors), "accept(2) fails, and the accept queue fills", fmt.Sprintf("LimitNOFILE=%d in the unit", 2*r.Descriptors))
	}
	if n, err := v.sysctl("net.netfilter.nf_conntrack_max"); err == nil && n < r.Conntrack {
		add(Error, "net.netfilter.nf_conntrack_max", fmt.Sprintf("%d, %s need %d", n, who, r.Conntrack), "each closed connection is tracked for two minutes more; when the table is full SYNs are dropped", fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d, or no tracking for weir's ports", 2*r.Conntrack))
	}
	var memory int64
	for _, s := range v.Config.Sources {
		memory += s.MemoryLimit
	}
	if memory < r.StallMemory {
		add(Warning, "memory_limit", fmt.Sprintf("%s, %s send %s while the disk stalls for %v", size(memory), who, size(r.StallMemory), f.Stall), "weir stops reading, and senders wait", fmt.Sprintf("memory_limit %dm in the <source>", r.StallMemory>>20+1))
	}
	if r.BalancerAddresses > 1 {
		add(Note, "load balancer", fmt.Sprintf("one that connects from its own address needs %d ports, %d addresses of %d each", r.BalancerPorts, r.BalancerAddresses, fleet.EphemeralPorts),
			"a closed connection keeps its port for a minute, and a balancer without a free one cannot connect: senders see timeouts, weir sees nothing", "more source addresses, direct routing, fewer heartbeats (a longer interval, or udp), or keepalive true in the senders")
	}
	if r.AcceptLoad >= 1 {
		add(Error, who, fmt.Sprintf("%.0f connections a second keep the accept loop busy %.0f %% of its time", r.Connections, 100*r.AcceptLoad),
			"the queue grows without end: no backlog is large enough", fmt.Sprintf("%d servers, UDP heartbeats, or senders that keep their connections", r.Servers))
	} else if r.Servers > 1 {
		add(Warning, who, fmt.Sprintf("%.0f connections and %.0f messages a second take %.1f cores and %.0f MB/s of disk; this machine has %d CPUs", r.Connections, r.Messages, r.Cores, r.DiskBytes/1e6, v.CPUs),
			fmt.Sprintf("its %s comes to its end first: with %.0f %% kept free that is %.1f servers", r.Bound, 100-100*fleet.Headroom, r.Load), fmt.Sprintf("%d servers, and max_connection_age so that senders spread; or UDP heartbeats and longer flushes", r.Servers))
	} else {
		all = append(all, ok(who, "%.2f cores of %d, %.0f fdatasync/s; one server is used to %.0f %% of what it may take", r.Cores, v.CPUs, r.Commits, math.Ceil(100*r.Load))...)
	}
	return all, nil
}
