package doctor

import (
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
)

// pid is the process whose limits count.
func (v *view) pid() int {
	if v.Running != nil {
		return v.Running.PID
	}
	return v.PID
}

// unitDirs is where systemd looks for units, what counts most first
// (systemd.unit(5)).
var unitDirs = []string{"etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"}

// service is the [Service] section of weir's unit with its drop-ins.
type service struct {
	name   string
	values map[string]string
}

// service finds the unit: that of the running weir, or weir.service if one is
// installed and none runs; nil without one.
func (v *view) service() *service {
	name := "weir.service"
	if v.Running != nil {
		if name = path.Base(v.cgroup()); !strings.HasSuffix(name, ".service") {
			return nil
		}
	}
	s := &service{name: name, values: map[string]string{}}
	found := false
	for _, dir := range unitDirs {
		if text, err := v.read(dir + "/" + name); err == nil {
			s.add(text)
			found = true
			break
		}
	}
	if !found {
		return nil
	}
	// Drop-ins of all directories are taken in the order of their names; one
	// replaces another of the same name further down.
	dropins := map[string]string{}
	for _, dir := range slices.Backward(unitDirs) {
		files, _ := fs.Glob(v.Root, dir+"/"+name+".d/*.conf")
		for _, f := range files {
			dropins[path.Base(f)] = f
		}
	}
	names := make([]string, 0, len(dropins))
	for n := range dropins {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		if text, err := v.read(dropins[n]); err == nil {
			s.add(text)
		}
	}
	return s
}

func (s *service) add(text string) {
	options, err := unit.DeserializeOptions(strings.NewReader(text))
	if err != nil {
		return // systemd says so itself, louder
	}
	for _, o := range options {
		if o.Section == "Service" {
			s.values[o.Name] = o.Value
		}
	}
}

// cgroup is the process's path in the one hierarchy of version 2 (cgroups(7));
// empty without it.
func (v *view) cgroup() string {
	text, err := v.read(fmt.Sprintf("proc/%d/cgroup", v.pid()))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(text) {
		if p, found := strings.CutPrefix(strings.TrimSpace(line), "0::"); found {
			return p
		}
	}
	return ""
}

// cgroupMin is the smallest value of a limit in the process's cgroup and its
// parents, and where it is; found is false if there is none.
func (v *view) cgroupMin(file string) (limit int64, where string, found bool) {
	for p := v.cgroup(); p != ""; p = path.Dir(p) {
		name := path.Join("sys/fs/cgroup", p, file)
		if text, err := v.read(name); err == nil {
			if n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil && (!found || n < limit) {
				limit, where, found = n, "/"+name, true
			}
		}
		if p == "/" {
			break
		}
	}
	return limit, where, found
}

// rlimit is a limit of the process from /proc/PID/limits, by its name there, or
// the unit's if no weir runs, and who sets it. Unlimited is MaxInt64. The hard
// limit counts for descriptors: Go raises the soft one at start.
func (v *view) rlimit(name, directive string) (limit int64, where string, err error) {
	if s := v.service(); s != nil && v.Running == nil {
		if text, set := s.values[directive]; set {
			n, err := unitSize(text)
			return n, directive + " of " + s.name, err
		}
		if directive == "LimitNOFILE" {
			return 524288, "systemd's default for " + s.name, nil
		}
		return math.MaxInt64, s.name, nil
	}
	text, err := v.read(fmt.Sprintf("proc/%d/limits", v.pid()))
	if err != nil {
		return 0, "", err
	}
	for line := range strings.Lines(text) {
		rest, found := strings.CutPrefix(line, name)
		if f := strings.Fields(rest); found && len(f) >= 2 {
			if f[0] == "unlimited" {
				return math.MaxInt64, "", nil
			}
			n, err := strconv.ParseInt(f[0], 10, 64)
			where := "ulimit of this shell"
			if v.Running != nil {
				where = fmt.Sprintf("the limit of process %d", v.Running.PID)
			}
			return n, where, err
		}
	}
	return 0, "", fmt.Errorf("no %q in /proc/%d/limits", name, v.pid())
}

// unitSize reads 1048576, 1024:524288 (the hard limit), 64M or infinity.
func unitSize(text string) (int64, error) {
	_, hard, found := strings.Cut(text, ":")
	if found {
		text = hard
	}
	if text == "infinity" {
		return math.MaxInt64, nil
	}
	shift := 0
	if i := strings.IndexAny(text, "KMGT"); i >= 0 && i == len(text)-1 {
		shift = 10 * (1 + strings.IndexByte("KMGT", text[i]))
		text = text[:i]
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n << shift, err
}

// unitTime reads a time span of systemd.time(7): 90, 1min 30s, infinity.
func unitTime(text string) (time.Duration, error) {
	if text == "infinity" {
		return math.MaxInt64, nil
	}
	if n, err := strconv.ParseFloat(text, 64); err == nil {
		return time.Duration(n * float64(time.Second)), nil
	}
	replaced := strings.NewReplacer("minutes", "m", "minute", "m", "min", "m", "msec", "ms", "seconds", "s", "second", "s", "sec", "s", "hours", "h", "hour", "h", "hr", "h", " ", "").Replace(text)
	return time.ParseDuration(replaced)
}

// spareFiles are descriptors for chunks, outputs, listeners and the runtime.
const spareFiles = 256

// openFiles compares descriptors with max_connections.
func openFiles(v *view) ([]Finding, error) {
	need := int64(v.maxConnections() + spareFiles)
	limit, where, err := v.rlimit("Max open files", "LimitNOFILE")
	if err != nil {
		return nil, err
	}
	var all []Finding
	if limit < need {
		all = append(all, finding(Warning, "RLIMIT_NOFILE", fmt.Sprintf("%d (%s), max_connections is %d", limit, where, v.maxConnections()),
			fmt.Sprintf("accept(2) fails from connection %d on; what comes then fills the accept queue", max(0, limit-spareFiles)),
			fmt.Sprintf("LimitNOFILE=%d in the unit (systemctl edit weir), or a smaller max_connections", need))...)
	}
	for _, name := range []string{"fs.nr_open", "fs.file-max"} {
		text, err := v.read("proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		if err != nil {
			return all, err
		}
		// file-max may be 2^63-1.
		if n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64); err == nil && n < need {
			all = append(all, finding(Warning, name, fmt.Sprintf("%d, and max_connections is %d", n, v.maxConnections()), "the kernel gives no more descriptors, whatever the unit says", fmt.Sprintf("sysctl -w %s=%d", name, 4*need))...)
		}
	}
	if all == nil {
		return ok("RLIMIT_NOFILE", "%s, %d needed at most", limitText(limit), need), nil
	}
	return all, nil
}

func limitText(n int64) string {
	if n == math.MaxInt64 {
		return "unlimited"
	}
	return strconv.FormatInt(n, 10)
}

// Parts of the memory that memory_limit may take.
const memoryPart = 0.75

// memory compares memory_limit with what there is.
func memory(v *view) ([]Finding, error) {
	var need int64
	for _, s := range v.Config.Sources {
		need += s.MemoryLimit
	}
	limit, where, found := v.memoryLimit()
	if !found {
		text, err := v.read("proc/meminfo")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
				kib, err := strconv.ParseInt(f[1], 10, 64)
				if err != nil {
					return nil, fmt.Errorf("/proc/meminfo: %w", err)
				}
				limit, where = kib<<10, "the machine"
			}
		}
	}
	text := fmt.Sprintf("memory_limit is %s, %s has %s", size(need), where, size(limit))
	mend := fmt.Sprintf("memory_limit %dm in the <source>, or more memory", max(1, int64(memoryPart*float64(limit))>>20/int64(max(1, len(v.Config.Sources)))))
	switch {
	case need >= limit:
		return finding(Error, "memory_limit", text, "when senders are faster than the disk, the kernel kills weir before weir makes them wait", mend), nil
	case float64(need) > memoryPart*float64(limit):
		return finding(Warning, "memory_limit", text, "beside that budget weir needs room for connections, indexes and the garbage collector", mend), nil
	}
	return ok("memory_limit", "%s", text), nil
}

// memoryLimit is the cgroup's, or the unit's if no weir runs.
func (v *view) memoryLimit() (limit int64, where string, found bool) {
	if s := v.service(); s != nil && v.Running == nil {
		for _, directive := range []string{"MemoryMax", "MemoryHigh"} {
			if n, err := unitSize(s.values[directive]); err == nil && n < math.MaxInt64 && (!found || n < limit) {
				limit, where, found = n, directive+" of "+s.name, true
			}
		}
		return limit, where, found
	}
	limit, where, found = v.cgroupMin("memory.max")
	if high, at, isSet := v.cgroupMin("memory.high"); isSet && (!found || high < limit) {
		limit, where, found = high, at, true
	}
	return limit, where, found
}

// cpu looks at the quota of the cgroup: weir stands still when it is used up.
func cpu(v *view) ([]Finding, error) {
	group := v.cgroup()
	for p := group; p != ""; p = path.Dir(p) {
		name := path.Join("sys/fs/cgroup", p, "cpu.max")
		text, err := v.read(name)
		f := strings.Fields(text)
		if err == nil && len(f) == 2 && f[0] != "max" {
			quota, err1 := strconv.ParseFloat(f[0], 64)
			period, err2 := strconv.ParseFloat(f[1], 64)
			if err1 != nil || err2 != nil || period <= 0 {
				return nil, fmt.Errorf("/%s: %q is not QUOTA PERIOD", name, strings.TrimSpace(text))
			}
			stat, _ := v.read(path.Join("sys/fs/cgroup", p, "cpu.stat"))
			throttled := field(stat, "nr_throttled")
			found := fmt.Sprintf("%.2f CPUs of %d, throttled %d times", quota/period, v.CPUs, throttled)
			if throttled > 0 || quota < period {
				return finding(Warning, "/"+name, found, fmt.Sprintf("when the quota is used up nothing is accepted for up to %v, and the accept queue fills", time.Duration(period*float64(time.Microsecond))),
					"a larger CPUQuota= in the unit, or none: CPUWeight= gives a share without stalls"), nil
			}
			return ok("/"+name, "%s", found), nil
		}
		if p == "/" {
			break
		}
	}
	return ok("CPU", "%d, without a quota", v.CPUs), nil
}

// field is the number after a name in lines of NAME VALUE.
func field(text, name string) int64 {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}

// fewTasks is less than what Go needs when its threads wait for the disk.
const fewTasks = 64

func tasks(v *view) ([]Finding, error) {
	limit, where, found := v.cgroupMin("pids.max")
	if s := v.service(); s != nil && v.Running == nil {
		n, err := unitSize(s.values["TasksMax"])
		limit, where, found = n, "TasksMax of "+s.name, err == nil && n < math.MaxInt64
	}
	switch {
	case !found:
		return ok("tasks", "no limit"), nil
	case limit < fewTasks:
		return finding(Warning, where, fmt.Sprintf("%d threads", limit), "each file operation under way takes a thread; without one the Go runtime ends the process", fmt.Sprintf("TasksMax=%d or more in the unit", 8*fewTasks)), nil
	}
	return ok(where, "%d threads", limit), nil
}

// stopTimeout compares systemd's patience with drain_timeout.
func stopTimeout(v *view) ([]Finding, error) {
	s := v.service()
	if s == nil {
		return ok("drain_timeout", "%v; weir does not run under systemd", v.Config.DrainTimeout), nil
	}
	text, set := s.values["TimeoutStopSec"]
	if !set {
		text, set = s.values["TimeoutSec"]
	}
	if !set {
		text = "90" // DefaultTimeoutStopSec
	}
	limit, err := unitTime(text)
	if err != nil {
		return nil, fmt.Errorf("TimeoutStopSec=%s of %s: %w", text, s.name, err)
	}
	if limit <= v.Config.DrainTimeout {
		return finding(Warning, s.name, fmt.Sprintf("TimeoutStopSec is %v, drain_timeout %v", limit, v.Config.DrainTimeout), "systemd kills weir before it has drained; nothing acked is lost, but it is delivered only after the next start",
			fmt.Sprintf("TimeoutStopSec=%.0f in the unit, or a smaller drain_timeout", (v.Config.DrainTimeout+15*time.Second).Seconds())), nil
	}
	return ok(s.name, "TimeoutStopSec %v, drain_timeout %v", limit, v.Config.DrainTimeout), nil
}

// fileSize compares RLIMIT_FSIZE with the chunks.
func fileSize(v *view) ([]Finding, error) {
	limit, where, err := v.rlimit("Max file size", "LimitFSIZE")
	if err != nil {
		return nil, err
	}
	var largest int64
	for _, m := range v.matches() {
		largest = max(largest, m.Buffer.ChunkLimit)
	}
	if limit < largest {
		return finding(Error, "RLIMIT_FSIZE", fmt.Sprintf("%s (%s), chunk_limit_size is %s", size(limit), where, size(largest)), "the kernel refuses writes beyond it: chunks and output files end there, and nothing more is acked",
			"LimitFSIZE=infinity in the unit (ulimit -f unlimited)"), nil
	}
	if limit < math.MaxInt64 {
		return finding(Note, "RLIMIT_FSIZE", fmt.Sprintf("%s (%s)", size(limit), where), "output files cannot grow beyond it", "LimitFSIZE=infinity in the unit (ulimit -f unlimited)"), nil
	}
	return ok("RLIMIT_FSIZE", "unlimited"), nil
}
