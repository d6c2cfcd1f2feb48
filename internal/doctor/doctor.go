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

	"weir/internal/config"
	"weir/internal/fleet"
	"weir/netopt"
)

// Target is what the machine is checked against.
type Target struct {
	Config *config.Config
	// Running is the weir that runs with it, nil if none answers.
	Running *Running
	// Fleet is what a fleet needs, nil if none is given.
	Fleet *fleet.Result
}

// Running is what a running weir tells of itself.
type Running struct {
	PID int
	// Silent: the kernel has its listeners, and its status endpoint does not
	// answer.
	Silent    bool
	Listeners []RunningListener
}

// RunningListener is one of its listeners. Address is host:port or a path.
type RunningListener struct {
	Address        string
	Asked, Granted int
}

// view is what a check looks at.
type view struct {
	context.Context
	*Machine
	Target
	sockets []netopt.ListenSocket
}

// check is one check. Its name is that of its section in docs/doctor.md.
type check struct {
	name string
	// cheap: a running weir makes it every few minutes, as it costs under a few
	// milliseconds, writes nothing and needs no privilege.
	cheap bool
	run   func(v *view) ([]Finding, error)
}

// checks lists all checks, in the order of the way of the data.
func checks() []check {
	return []check{
		{"port-in-use", false, portInUse},
		{"backlog", true, backlog},
		{"accept-queue", true, acceptQueue},
		{"syncookies", true, syncookies},
		{"max-syn-backlog", true, maxSynBacklog},
		{"synack-retries", true, synackRetries},
		{"abort-on-overflow", true, abortOnOverflow},
		{"tw-reuse", true, twReuse},
		{"tw-recycle", true, twRecycle},
		{"migrate-req", true, migrateReq},
		{"port-range", true, portRange},
		{"listen-overflows", true, listenOverflows},
		{"kernel-log", false, kernelLogLines},
		{"conntrack", true, conntrack},
		{"softnet", true, softnet},
		{"nic", true, nic},
		{"udp", true, udpBuffers},
		{"open-files", true, openFiles},
		{"memory", true, memory},
		{"cpu", true, cpu},
		{"tasks", true, tasks},
		{"stop-timeout", true, stopTimeout},
		{"file-size", true, fileSize},
		{"disk-space", true, diskSpace},
		{"inodes", true, inodes},
		{"file-system", true, fileSystemType},
		{"disk-speed", false, diskSpeed},
		{"clock", true, clockState},
		{"certificates", true, certificates},
		{"fleet", true, fleetNeeds},
	}
}

// Run makes all checks and returns what each found, in their order. A check
// that cannot be made is a Note that says why.
func Run(ctx context.Context, m *Machine, t Target) []Finding { return run(ctx, m, t, false) }

// RunCheap makes the checks that a running weir may repeat, and returns what is
// not OK.
func RunCheap(ctx context.Context, m *Machine, t Target) []Finding {
	return slices.DeleteFunc(run(ctx, m, t, true), func(f Finding) bool { return f.Severity == OK })
}

func run(ctx context.Context, m *Machine, t Target, cheap bool) []Finding {
	v := &view{Context: ctx, Machine: m, Target: t}
	var socketsErr error
	if v.sockets, socketsErr = m.Sockets(); socketsErr != nil {
		v.sockets = nil
	}
	if t.Running == nil {
		v.Running = v.fromKernel()
	}
	var all []Finding
	for _, c := range checks() {
		if cheap && !c.cheap {
			continue
		}
		found, err := c.run(v)
		if err == nil && socketsErr != nil && c.name == "accept-queue" {
			err = socketsErr
		}
		if err != nil {
			found = append(found, Finding{Severity: Note, Found: "could not be checked: " + oneLine(err)})
		}
		for _, f := range found {
			f.Check, f.Doc = c.name, "docs/doctor.md#"+c.name
			all = append(all, f)
		}
	}
	return all
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// Worst is the worst severity of the findings, OK if there are none.
func Worst(all []Finding) Severity {
	worst := OK
	for _, f := range all {
		if f.Severity.rank() > worst.rank() {
			worst = f.Severity
		}
	}
	return worst
}

func (s Severity) rank() int {
	return slices.Index([]Severity{OK, Note, Warning, Error}, s)
}

// ok, note, warn and bad make a slice of one finding.
func ok(subject, format string, args ...any) []Finding {
	return []Finding{{Severity: OK, Subject: subject, Found: fmt.Sprintf(format, args...)}}
}

func finding(s Severity, subject, found, why, mend string) []Finding {
	return []Finding{{Severity: s, Subject: subject, Found: found, Why: why, Mend: mend}}
}

// read reads a file by its absolute path.
func (v *view) read(path string) (string, error) {
	b, err := fs.ReadFile(v.Root, strings.TrimPrefix(path, "/"))
	return string(b), err
}

// sysctl reads a kernel parameter of one number.
func (v *view) sysctl(name string) (int, error) {
	text, err := v.read("proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return 0, fmt.Errorf("sysctl %s: %w", name, err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return 0, fmt.Errorf("sysctl %s: %w", name, err)
	}
	return n, nil
}

// netFile reads a file of the network namespace of the calling thread.
func (v *view) netFile(name string) (string, error) { return v.read("proc/thread-self/net/" + name) }

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// listener is a TCP listener that weir has or would have.
type listener struct {
	address string // host:port
	asked   int    // 0: what the kernel allows
	short   bool   // on_backlog_mismatch warn
	granted int    // by a running weir; 0 if none runs
	max     int    // max_connections of its source
}

// listeners are those of the running weir, else those of the configuration;
// unix sockets are left out.
func (v *view) listeners() []listener {
	var all []listener
	for _, s := range v.Config.Sources {
		for _, a := range s.Addresses {
			if !strings.HasPrefix(a, "unix:") {
				all = append(all, listener{address: a, asked: s.Backlog, short: s.AllowShortBacklog, max: s.MaxConnections})
			}
		}
	}
	if v.Running == nil {
		return all
	}
	for _, r := range v.Running.Listeners {
		i := slices.IndexFunc(all, func(l listener) bool { return sameAddress(l.address, r.Address) })
		if i >= 0 {
			all[i].granted = r.Granted
		}
	}
	return all
}

// ports are the distinct TCP ports of the listeners.
func (v *view) ports() []int {
	var all []int
	for _, l := range v.listeners() {
		if p := port(l.address); p > 0 && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all
}

func port(address string) int {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(p)
	return n
}

// sameAddress reports whether two host:port are one: the same port, and the
// same address, two wildcards, or a name whose address is not known here.
func sameAddress(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB {
		return false
	}
	ipA, errA := netip.ParseAddr(hostA)
	ipB, errB := netip.ParseAddr(hostB)
	if errA != nil || errB != nil {
		return true
	}
	return ipA.Unmap() == ipB.Unmap() || ipA.IsUnspecified() && ipB.IsUnspecified()
}

// socketsOf are the listening sockets at that address.
func (v *view) socketsOf(address string) []netopt.ListenSocket {
	var all []netopt.ListenSocket
	for _, s := range v.sockets {
		if sameAddress(address, s.Addr.String()) {
			all = append(all, s)
		}
	}
	return all
}

// matches are all matches of the configuration.
func (v *view) matches() []*config.Match {
	var all []*config.Match
	for _, m := range v.Config.Routes {
		all = append(all, m...)
	}
	slices.SortFunc(all, func(a, b *config.Match) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// maxConnections is the sum over all sources.
func (v *view) maxConnections() int {
	n := 0
	for _, s := range v.Config.Sources {
		n += s.MaxConnections
	}
	return n
}

// size formats bytes for people.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
