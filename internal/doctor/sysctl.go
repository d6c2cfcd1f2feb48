package doctor

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// WriteSysctl writes a file for /etc/sysctl.d with what the configuration, and
// the fleet if one is given, needs of the kernel. Values that are larger already
// are kept.
func WriteSysctl(ctx context.Context, w io.Writer, m *Machine, t Target) error {
	v := &view{Context: ctx, Machine: m, Target: t}
	limit, err := v.sysctl("net.core.somaxconn")
	if err != nil {
		return err
	}
	b := bufio.NewWriter(w)
	fmt.Fprint(b, "# Written by weir doctor --sysctl. Save it as /etc/sysctl.d/60-weir.conf, load it\n"+
		"# with sysctl --system, then reload weir: a raised somaxconn takes effect when\n# listen(2) is called again.\n")

	backlog, why := max(limit, usualBacklog), "The largest backlog that listen(2) grants."
	for _, l := range v.listeners() {
		if l.asked > backlog {
			backlog, why = l.asked, fmt.Sprintf("The largest backlog that listen(2) grants; %s asks for it.", l.address)
		}
	}
	if t.Fleet != nil && t.Fleet.Backlog > backlog {
		backlog, why = t.Fleet.Backlog, fmt.Sprintf("The largest backlog that listen(2) grants; %d senders need it, with backlog %d in the <source>.", t.Fleet.Fleet.Senders, t.Fleet.Backlog)
	}
	entry := func(comment, name, value string) { fmt.Fprintf(b, "\n# %s\n%s = %s\n", comment, name, value) }
	entry(why, "net.core.somaxconn", strconv.Itoa(backlog))
	entry("A SYN queue that is full answers with cookies instead of dropping. Its limit is\n# the backlog: net.ipv4.tcp_max_syn_backlog is not set here, as it has no effect\n# then.", "net.ipv4.tcp_syncookies", "1")
	entry("A full accept queue makes senders wait, not fail.", "net.ipv4.tcp_abort_on_overflow", "0")

	if n, err := v.sysctl("net.ipv4.tcp_synack_retries"); err == nil && (n < 2 || n > 5) {
		entry("The kernel's default: half-open connections are kept for about a minute.", "net.ipv4.tcp_synack_retries", "5")
	}
	found, err := portRange(v)
	if err != nil {
		return err
	}
	for _, f := range found {
		if _, ports, isSet := strings.Cut(f.Mend, "ip_local_reserved_ports="); isSet {
			entry("No outgoing connection takes weir's port while weir is away.", "net.ipv4.ip_local_reserved_ports", ports)
		}
	}
	if found, err := migrateReq(v); err == nil {
		for _, f := range found {
			if f.Severity != OK {
				entry("Queued connections move when one of the listeners of a port is closed.", f.Subject, "1")
			}
		}
	}
	if n, err := v.sysctl("net.netfilter.nf_conntrack_max"); err == nil {
		need := v.maxConnections()
		if t.Fleet != nil {
			need = max(need, 2*t.Fleet.Conntrack)
		}
		if need > n {
			entry("Connection tracking is loaded: a full table drops SYNs before TCP sees them.", "net.netfilter.nf_conntrack_max", strconv.Itoa(need))
		}
	}
	descriptors := v.maxConnections() + spareFiles
	if t.Fleet != nil {
		descriptors = max(descriptors, t.Fleet.Descriptors)
	}
	for _, name := range []string{"fs.nr_open", "fs.file-max"} {
		text, err := v.read("proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil && n < int64(descriptors) {
			entry("Descriptors for max_connections; the unit's LimitNOFILE cannot exceed it.", name, strconv.Itoa(4*descriptors))
		}
	}
	return b.Flush()
}
