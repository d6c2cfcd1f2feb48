package doctor

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"weir/internal/config"
	"weir/internal/fleet"
	"weir/netopt"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// machine is a fixture: files by path, and what is not a file.
type machine struct {
	files   map[string]string
	links   map[string]string
	sockets []netopt.ListenSocket
	log     []string
	logErr  error
	clock   Clock
	disk    FileSystem
	probe   Probe
	running *Running
	source  string // lines within the source
	buffer  string // lines within <buffer>
	system  string // lines within <system>
	fleet   *fleet.Fleet
	modTime time.Time
}

const netstatHead = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPReqQFullDoCookies TCPReqQFullDrop\n"

// good is a machine without any fault.
func good() *machine {
	return &machine{
		files: map[string]string{
			"proc/sys/net/core/somaxconn":                        "4096\n",
			"proc/sys/net/core/netdev_max_backlog":               "1000\n",
			"proc/sys/net/ipv4/tcp_syncookies":                   "1\n",
			"proc/sys/net/ipv4/tcp_max_syn_backlog":              "128\n",
			"proc/sys/net/ipv4/tcp_synack_retries":               "5\n",
			"proc/sys/net/ipv4/tcp_abort_on_overflow":            "0\n",
			"proc/sys/net/ipv4/tcp_tw_reuse":                     "2\n",
			"proc/sys/net/ipv4/tcp_migrate_req":                  "0\n",
			"proc/sys/net/ipv4/ip_local_port_range":              "32768\t60999\n",
			"proc/sys/net/ipv4/ip_local_reserved_ports":          "\n",
			"proc/sys/net/netfilter/nf_conntrack_max":            "262144\n",
			"proc/sys/net/netfilter/nf_conntrack_count":          "12\n",
			"proc/sys/fs/nr_open":                                "1048576\n",
			"proc/sys/fs/file-max":                               "9223372036854775807\n",
			"proc/thread-self/net/netstat":                       netstatHead + "TcpExt: 0 0 0 0 0\n",
			"proc/thread-self/net/softnet_stat":                  "0000ffff 00000000 00000001 00000000\n0000ffff 00000000 00000000 00000000\n",
			"proc/thread-self/net/dev":                           "Inter-|   Receive\n face |bytes\n    lo: 1 1 9 9 9 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 999 100000 0 1 0 0 0 0 1 1 0 0 0 0 0 0\n",
			"proc/thread-self/net/udp":                           "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n  100: 00000000:5EA0 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 77 2 0000000000000000 0\n",
			"proc/thread-self/net/snmp":                          "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\nUdp: 5 0 0 5 0\n",
			"proc/meminfo":                                       "MemTotal:       16384000 kB\nMemFree: 1 kB\n",
			"proc/100/limits":                                    "Limit                     Soft Limit           Hard Limit           Units\nMax file size             unlimited            unlimited            bytes\nMax open files            1048576              1048576              files\n",
			"proc/100/cgroup":                                    "0::/system.slice/weir.service\n",
			"proc/100/comm":                                      "weir\n",
			"sys/fs/cgroup/system.slice/weir.service/cpu.max":    "max 100000\n",
			"sys/fs/cgroup/system.slice/weir.service/memory.max": "max\n",
			"sys/fs/cgroup/system.slice/weir.service/pids.max":   "18000\n",
			"usr/lib/systemd/system/weir.service":                "[Service]\nTimeoutStopSec=90\nLimitNOFILE=1048576\n",
		},
		links:   map[string]string{},
		clock:   Clock{Synchronised: true, MaxError: 10 * time.Millisecond},
		disk:    FileSystem{Type: "ext4", Device: "8:1", Path: "/var", Total: 500 << 30, Free: 400 << 30, Files: 1000, FilesFree: 900},
		probe:   Probe{Direct: true, Writes: []time.Duration{100 * time.Microsecond, 120 * time.Microsecond, time.Millisecond}, Bandwidth: 500e6},
		modTime: now.Add(-time.Hour),
	}
}

func (m *machine) set(path, value string) { m.files[path] = value }

// findings makes all checks.
func (m *machine) findings(t *testing.T) []Finding {
	t.Helper()
	host, target := m.build(t)
	return Run(t.Context(), host, target)
}

func (m *machine) build(t *testing.T) (*Machine, Target) {
	t.Helper()
	root := fstest.MapFS{"var/lib/weir/chunk.1.weir": {Data: []byte("x"), ModTime: m.modTime, Mode: 0o640}}
	for path, text := range m.files {
		root[path] = &fstest.MapFile{Data: []byte(text), Mode: 0o444}
	}
	for path, to := range m.links {
		root[path] = &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink | 0o777}
	}
	text := "<source>\n@type forward\n" + m.source + "\n</source>\n<system>\n" + m.system + "\n</system>\n<match **>\n@type null\n<buffer>\npath /var/lib/weir\n" + m.buffer + "\n</buffer>\n</match>\n"
	c, err := config.Parse("weir.conf", text, config.OSEnv())
	if err != nil {
		t.Fatal(err)
	}
	host := &Machine{Root: root, PID: 100, CPUs: 4, Now: now,
		Sockets:    func() ([]netopt.ListenSocket, error) { return m.sockets, nil },
		KernelLog:  func() ([]string, error) { return m.log, m.logErr },
		Clock:      func() (Clock, error) { return m.clock, nil },
		FileSystem: func(string) (FileSystem, error) { return m.disk, nil },
		Probe:      func(context.Context, string) (Probe, error) { return m.probe, nil },
	}
	target := Target{Config: c, Running: m.running}
	if m.fleet != nil {
		r, err := fleet.Simulate(*m.fleet, fleet.Server{Cores: 4, Backlog: SmallestBacklog(host, target), CommitTime: time.Millisecond, DiskBytes: 500e6}, fleet.MeasuredCosts())
		if err != nil {
			t.Fatal(err)
		}
		target.Fleet = r
	}
	return host, target
}

func socket(address string, depth, backlog int, drops uint64) netopt.ListenSocket {
	return netopt.ListenSocket{Addr: netip.MustParseAddrPort(address), Depth: depth, Backlog: backlog, Drops: drops, Inode: 4711, UID: 33}
}

// TestGoodMachine: nothing is found where nothing is wrong, running or not.
func TestGoodMachine(t *testing.T) {
	for _, running := range []*Running{nil, {PID: 100, Listeners: []RunningListener{{Address: "0.0.0.0:24224", Asked: 4096, Granted: 4096}}}} {
		m := good()
		if m.running = running; running != nil {
			m.sockets = []netopt.ListenSocket{socket("0.0.0.0:24224", 3, 4096, 0)}
		}
		seen := map[string]bool{}
		for _, f := range m.findings(t) {
			seen[f.Check] = true
			if f.Severity != OK {
				t.Errorf("%+v", f)
			}
		}
		for _, c := range checks() {
			if !seen[c.name] && c.name != "fleet" && c.name != "certificates" && (c.name != "accept-queue" || running != nil) {
				t.Errorf("check %s found nothing at all", c.name)
			}
		}
	}
}

// TestBadMachines: each fault is found, as bad as it is and with what mends it,
// and nothing else is.
func TestBadMachines(t *testing.T) {
	listening := func(m *machine, s ...netopt.ListenSocket) {
		m.sockets = s
		m.running = &Running{PID: 100, Listeners: []RunningListener{{Address: "0.0.0.0:24224", Asked: s[0].Backlog, Granted: s[0].Backlog}}}
	}
	for _, c := range []struct {
		name     string
		change   func(m *machine)
		check    string
		severity Severity
		want     []string // within found, why or mend
	}{
		{"somaxconn too small for what is asked", func(m *machine) { m.source = "backlog 16384" }, "backlog", Error, []string{"16384", "4096", "sysctl -w net.core.somaxconn=16384"}},
		{"the same, allowed", func(m *machine) { m.source = "backlog 16384\non_backlog_mismatch warn" }, "backlog", Warning, []string{"16384", "4096", "4098"}},
		{"somaxconn 128", func(m *machine) { m.set("proc/sys/net/core/somaxconn", "128\n") }, "backlog", Warning, []string{"128", "net.core.somaxconn=128", "65536", "somaxconn=4096"}},
		{"backlog 128", func(m *machine) { m.source = "backlog 128" }, "backlog", Warning, []string{"the configuration", "backlog 4096 in the <source>"}},
		{"raised since listen", func(m *machine) { listening(m, socket("0.0.0.0:24224", 0, 128, 0)) }, "backlog", Warning, []string{"128", "4096 now", "reload"}},
		{"queue full", func(m *machine) { listening(m, socket("0.0.0.0:24224", 4097, 4096, 0)) }, "accept-queue", Error, []string{"4097", "full"}},
		{"queue nearly full", func(m *machine) { listening(m, socket("0.0.0.0:24224", 3500, 4096, 0)) }, "accept-queue", Warning, []string{"3500"}},
		{"cookies off", func(m *machine) {
			m.set("proc/sys/net/ipv4/tcp_syncookies", "0")
			m.set("proc/sys/net/ipv4/tcp_max_syn_backlog", "8192")
		}, "syncookies", Warning, []string{"tcp_syncookies=1"}},
		{"cookies for all", func(m *machine) { m.set("proc/sys/net/ipv4/tcp_syncookies", "2") }, "syncookies", Warning, []string{"tests"}},
		{"no retries", func(m *machine) { m.set("proc/sys/net/ipv4/tcp_synack_retries", "0") }, "synack-retries", Warning, []string{"=5"}},
		{"many retries", func(m *machine) { m.set("proc/sys/net/ipv4/tcp_synack_retries", "8") }, "synack-retries", Note, []string{"half-open"}},
		{"abort", func(m *machine) { m.set("proc/sys/net/ipv4/tcp_abort_on_overflow", "1") }, "abort-on-overflow", Warning, []string{"reset", "=0"}},
		{"tw_recycle", func(m *machine) { m.set("proc/sys/net/ipv4/tcp_tw_recycle", "1") }, "tw-recycle", Error, []string{"NAT"}},
		{"tw_recycle left in a file", func(m *machine) { m.set("etc/sysctl.d/50-old.conf", "# old\nnet.ipv4.tcp_tw_recycle = 1\n") }, "tw-recycle", Note, []string{"50-old.conf", "remove"}},
		{"two listeners share", func(m *machine) {
			listening(m, socket("0.0.0.0:24224", 0, 4096, 0), socket("0.0.0.0:24224", 0, 4096, 0))
		}, "migrate-req", Warning, []string{"2 listeners", "tcp_migrate_req=1"}},
		{"port in the ephemeral range", func(m *machine) { m.set("proc/sys/net/ipv4/ip_local_port_range", "10000 60999") }, "port-range", Warning, []string{"24224 and 24220", "ip_local_reserved_ports=24224,24220"}},
		{"one of two reserved", func(m *machine) {
			m.set("proc/sys/net/ipv4/ip_local_port_range", "10000 60999")
			m.set("proc/sys/net/ipv4/ip_local_reserved_ports", "8080,24220-24222\n")
		}, "port-range", Warning, []string{"covers 24224", "=8080,24220-24222,24224"}},
		{"own drops", func(m *machine) {
			listening(m, socket("0.0.0.0:24224", 0, 4096, 12))
			m.set("proc/thread-self/net/netstat", netstatHead+"TcpExt: 3 12 12 0 0\n")
		}, "listen-overflows", Warning, []string{"ListenOverflows 12", "0.0.0.0:24224 dropped 12"}},
		{"others' drops", func(m *machine) {
			m.sockets = []netopt.ListenSocket{socket("0.0.0.0:80", 0, 5, 7)}
			m.set("proc/thread-self/net/netstat", netstatHead+"TcpExt: 3 7 7 0 0\n")
		}, "listen-overflows", Note, []string{"0.0.0.0:80 dropped 7"}},
		{"cookies sent", func(m *machine) { m.set("proc/thread-self/net/netstat", netstatHead+"TcpExt: 3 0 0 9 0\n") }, "listen-overflows", Note, []string{"TCPReqQFullDoCookies 9"}},
		{"kernel message", func(m *machine) {
			m.log = []string{"boot", "TCP: request_sock_TCP: Possible SYN flooding on port 0.0.0.0:24224. Sending cookies. "}
		}, "kernel-log", Warning, []string{"SYN flooding", "tcp_max_syn_backlog does not help"}},
		{"kernel message of another port", func(m *machine) { m.log = []string{"TCP: Possible SYN flooding on port 2422. Sending cookies."} }, "kernel-log", Note, []string{"other ports"}},
		{"kernel log closed", func(m *machine) { m.logErr = fs.ErrPermission }, "kernel-log", Note, []string{"permission", "dmesg"}},
		{"conntrack full", func(m *machine) { m.set("proc/sys/net/netfilter/nf_conntrack_count", "262144") }, "conntrack", Error, []string{"262144 of 262144"}},
		{"conntrack nearly full", func(m *machine) { m.set("proc/sys/net/netfilter/nf_conntrack_count", "250000") }, "conntrack", Warning, []string{"nf_conntrack_max="}},
		{"conntrack small", func(m *machine) { m.set("proc/sys/net/netfilter/nf_conntrack_max", "32768") }, "conntrack", Warning, []string{"65536"}},
		{"softnet drops", func(m *machine) {
			m.set("proc/thread-self/net/softnet_stat", "00001000 0000000a 00000000\n")
		}, "softnet", Warning, []string{"10 of 4096", "netdev_max_backlog"}},
		{"softnet squeezed", func(m *machine) {
			m.set("proc/thread-self/net/softnet_stat", "00001000 00000000 00000100\n")
		}, "softnet", Note, []string{"256 times"}},
		{"ring overrun", func(m *machine) {
			m.set("proc/thread-self/net/dev", "  eth0: 999 1000 0 4 4 0 0 0 1 1 0 0 0 0 0 0\n")
		}, "nic", Warning, []string{"4 overran", "ethtool"}},
		{"interface drops", func(m *machine) {
			m.set("proc/thread-self/net/dev", "  eth0: 999 1000 0 4 0 0 0 0 1 1 0 0 0 0 0 0\n")
		}, "nic", Note, []string{"4 dropped"}},
		{"heartbeats dropped", func(m *machine) {
			m.set("proc/thread-self/net/udp", strings.Replace(m.files["proc/thread-self/net/udp"], "0000000000000000 0\n", "0000000000000000 5\n", 1))
		}, "udp", Warning, []string{"5 datagrams", "rmem_default"}},
		{"others' datagrams dropped", func(m *machine) {
			m.set("proc/thread-self/net/snmp", "Udp: InDatagrams RcvbufErrors\nUdp: 5 3\n")
		}, "udp", Note, []string{"RcvbufErrors 3"}},
		{"unit's descriptors", func(m *machine) {
			m.set("etc/systemd/system/weir.service.d/limits.conf", "[Service]\nLimitNOFILE=4096\n")
		}, "open-files", Warning, []string{"4096 (LimitNOFILE of weir.service)", "3840", "LimitNOFILE=65792"}},
		{"process's descriptors", func(m *machine) {
			listening(m, socket("0.0.0.0:24224", 0, 4096, 0))
			m.set("proc/100/limits", "Max file size             unlimited            unlimited            bytes\nMax open files            1024                 4096                 files\n")
		}, "open-files", Warning, []string{"1024 (the limit of process 100)"}},
		{"nr_open", func(m *machine) { m.set("proc/sys/fs/nr_open", "10000") }, "open-files", Warning, []string{"fs.nr_open="}},
		{"memory over the machine's", func(m *machine) { m.source = "memory_limit 32g" }, "memory", Error, []string{"32.0 GiB", "15.6 GiB"}},
		{"memory close to the cgroup's", func(m *machine) {
			listening(m, socket("0.0.0.0:24224", 0, 4096, 0))
			m.set("sys/fs/cgroup/system.slice/memory.max", "1200000000\n")
		}, "memory", Warning, []string{"/sys/fs/cgroup/system.slice/memory.max has 1.1 GiB"}},
		{"memory over the unit's", func(m *machine) {
			m.set("usr/lib/systemd/system/weir.service", "[Service]\nLimitNOFILE=infinity\nMemoryMax=512M\n")
		}, "memory", Error, []string{"MemoryMax of weir.service has 512.0 MiB", "memory_limit 384m"}},
		{"quota", func(m *machine) {
			m.set("sys/fs/cgroup/system.slice/weir.service/cpu.max", "50000 100000")
		}, "cpu", Warning, []string{"0.50 CPUs of 4", "100ms"}},
		{"throttled", func(m *machine) {
			m.set("sys/fs/cgroup/system.slice/weir.service/cpu.max", "200000 100000")
			m.set("sys/fs/cgroup/system.slice/weir.service/cpu.stat", "usage_usec 1\nnr_throttled 7\n")
		}, "cpu", Warning, []string{"throttled 7 times"}},
		{"tasks", func(m *machine) {
			listening(m, socket("0.0.0.0:24224", 0, 4096, 0))
			m.set("sys/fs/cgroup/system.slice/weir.service/pids.max", "10\n")
		}, "tasks", Warning, []string{"10 threads", "TasksMax"}},
		{"stop timeout", func(m *machine) { m.system = "drain_timeout 2m" }, "stop-timeout", Warning, []string{"1m30s", "2m0s", "TimeoutStopSec=135"}},
		{"file size", func(m *machine) {
			m.buffer = "chunk_limit_size 256m"
			m.set("usr/lib/systemd/system/weir.service", "[Service]\nLimitNOFILE=infinity\nLimitFSIZE=64M\n")
		}, "file-size", Error, []string{"64.0 MiB", "256.0 MiB"}},
		{"file size of outputs", func(m *machine) {
			m.set("usr/lib/systemd/system/weir.service", "[Service]\nLimitNOFILE=infinity\nLimitFSIZE=1G\n")
		}, "file-size", Note, []string{"1.0 GiB"}},
		{"disk smaller than the buffer", func(m *machine) { m.disk.Free = 40 << 30 }, "disk-space", Warning, []string{"40.0 GiB free", "64.2 GiB", "total_limit_size 32g"}},
		{"disk full", func(m *machine) { m.disk.Free = 0 }, "disk-space", Error, []string{"full"}},
		{"read-only", func(m *machine) { m.disk.ReadOnly = true }, "disk-space", Error, []string{"read-only"}},
		{"few inodes", func(m *machine) { m.disk.FilesFree = 9 }, "inodes", Warning, []string{"9 of 1000"}},
		{"no inodes", func(m *machine) { m.disk.FilesFree = 0 }, "inodes", Error, []string{"0 of 1000"}},
		{"tmpfs", func(m *machine) { m.disk.Type = "tmpfs" }, "file-system", Error, []string{"memory"}},
		{"overlay", func(m *machine) { m.disk.Type = "overlay" }, "file-system", Warning, []string{"container"}},
		{"nfs", func(m *machine) { m.disk.Type = "nfs" }, "file-system", Warning, []string{"network"}},
		{"no O_DIRECT", func(m *machine) { m.probe.Direct, m.probe.DirectError = false, "invalid argument" }, "disk-speed", Note, []string{"invalid argument"}},
		{"slow disk", func(m *machine) { m.probe.Writes = []time.Duration{30e6, 31e6, 40e6} }, "disk-speed", Warning, []string{"31ms"}},
		{"disk that hangs", func(m *machine) { m.probe.Writes = []time.Duration{1e6, 1e6, 900e6} }, "disk-speed", Note, []string{"900ms"}},
		{"clock not kept", func(m *machine) { m.clock.Synchronised = false }, "clock", Warning, []string{"not synchronised"}},
		{"clock stepped", func(m *machine) { m.clock.Stepped, m.clock.Since = -time.Hour, now }, "clock", Warning, []string{"-1h0m0s"}},
		{"files from the future", func(m *machine) { m.modTime = now.Add(2 * time.Hour) }, "clock", Warning, []string{"2h0m0s from now"}},
		{"port taken", func(m *machine) {
			m.sockets = []netopt.ListenSocket{socket("0.0.0.0:24224", 0, 4096, 0)}
			m.links["proc/200/fd/3"] = "socket:[4711]"
			m.set("proc/200/comm", "ruby\n")
		}, "port-in-use", Error, []string{"ruby", "process 200"}},
		{"port taken by who knows", func(m *machine) { m.sockets = []netopt.ListenSocket{socket("0.0.0.0:24224", 0, 4096, 0)} }, "port-in-use", Warning, []string{"user 33", "root"}},
		{"port taken for all addresses", func(m *machine) {
			m.source = "bind 127.0.0.1"
			m.sockets = []netopt.ListenSocket{socket("[::]:24224", 0, 4096, 0)}
			m.links["proc/200/fd/3"] = "socket:[4711]"
			m.set("proc/200/comm", "ruby\n")
		}, "port-in-use", Error, []string{"127.0.0.1:24224 ([::]:24224)", "ruby", "process 200"}},
		{"a silent weir with too small a backlog", func(m *machine) {
			m.sockets = []netopt.ListenSocket{socket("0.0.0.0:24224", 0, 128, 0)}
			m.links["proc/100/fd/3"] = "socket:[4711]"
		}, "backlog", Warning, []string{"a backlog of 128", "4096 now"}},
		{"weir without status", func(m *machine) {
			m.sockets = []netopt.ListenSocket{socket("0.0.0.0:24224", 0, 4096, 0)}
			m.links["proc/100/fd/3"] = "socket:[4711]"
		}, "port-in-use", Note, []string{"weir listens there, process 100", "127.0.0.1:24220"}},
		{"fleet too large for the backlog", func(m *machine) {
			m.fleet = &fleet.Fleet{Senders: 5000, Heartbeat: fleet.TCP, HeartbeatEvery: time.Second, FlushEvery: 10 * time.Second, FlushBytes: 1000, Keepalive: true, Stall: time.Second}
			m.set("proc/sys/net/netfilter/nf_conntrack_max", "10000000")
			m.set("proc/sys/net/ipv4/ip_local_port_range", "32768 60999")
		}, "fleet", Error, []string{"the backlog is 4096", "5000 senders need", "backlog 16384 in the <source>"}},
		{"fleet too large for one server", func(m *machine) {
			m.fleet = &fleet.Fleet{Senders: 50000, Heartbeat: fleet.TCP, HeartbeatEvery: time.Second, FlushEvery: 10 * time.Second, FlushBytes: 1000, Keepalive: true}
			m.set("proc/sys/net/netfilter/nf_conntrack_max", "10000000")
		}, "fleet", Error, []string{"50000 connections a second", "150 %", "no backlog is large enough"}},
		{"fleet that takes two", func(m *machine) {
			m.fleet = &fleet.Fleet{Senders: 1000, Heartbeat: fleet.None, FlushEvery: time.Second, FlushBytes: 600000, Keepalive: true}
		}, "fleet", Warning, []string{"disk comes to its end first", "2 servers"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := good()
			c.change(m)
			found := false
			for _, f := range m.findings(t) {
				if f.Severity == OK {
					continue
				}
				if f.Check != c.check && f.Severity.rank() >= c.severity.rank() {
					t.Errorf("found as well: %+v", f)
					continue
				}
				text := f.Subject + "\n" + f.Found + "\n" + f.Why + "\n" + f.Mend
				all := f.Severity == c.severity
				for _, want := range c.want {
					all = all && strings.Contains(text, want)
				}
				found = found || all
				if f.Severity.rank() > c.severity.rank() {
					t.Errorf("worse than %s: %+v", c.severity, f)
				}
				if f.Severity.rank() >= Warning.rank() && (f.Why == "" || f.Mend == "") {
					t.Errorf("without a reason or a mend: %+v", f)
				}
			}
			if !found {
				t.Errorf("no %s of %s with %q:\n%+v", c.severity, c.check, c.want, m.findings(t))
			}
		})
	}
}

// TestConflict: which sockets keep weir from listening.
func TestConflict(t *testing.T) {
	for _, c := range []struct {
		address, socket string
		only, want      bool
	}{
		{"127.0.0.1:24224", "127.0.0.1:24224", false, true},
		{"127.0.0.1:24224", "127.0.0.1:24225", false, false},
		{"127.0.0.1:24224", "127.0.0.2:24224", false, false},
		{"127.0.0.1:24224", "0.0.0.0:24224", false, true},
		{"0.0.0.0:24224", "10.0.0.1:24224", false, true},
		{"127.0.0.1:24224", "[::]:24224", false, true},
		{"127.0.0.1:24224", "[::]:24224", true, false},
		{"127.0.0.1:24224", "[::1]:24224", true, false},
		{"[::]:24224", "10.0.0.1:24224", false, true},
		{"[::1]:24224", "0.0.0.0:24224", false, false},
	} {
		s := socket(c.socket, 0, 1, 0)
		s.V6Only = c.only
		if got := conflict(c.address, s); got != c.want {
			t.Errorf("%s and %s (only %v): %v", c.address, c.socket, c.only, got)
		}
	}
}

// TestMaxSynBacklog: with cookies on the parameter is never to blame; with
// cookies off it is.
func TestMaxSynBacklog(t *testing.T) {
	for cookies, want := range map[string]Severity{"0": Warning, "1": OK, "2": OK} {
		m := good()
		m.set("proc/sys/net/ipv4/tcp_syncookies", cookies)
		for _, f := range m.findings(t) {
			if f.Check != "max-syn-backlog" {
				continue
			}
			if f.Severity != want || want == Warning && !strings.Contains(f.Found, "about 97 handshakes") {
				t.Errorf("syncookies %s: %+v", cookies, f)
			}
			if strings.Contains(f.Mend, "tcp_max_syn_backlog=") {
				t.Errorf("the mend is the wrong one: %+v", f)
			}
		}
	}
}

// certificate makes a certificate in PEM.
func certificate(t *testing.T, from, to time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "logs"}, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestCertificates(t *testing.T) {
	day := 24 * time.Hour
	fine := certificate(t, now.Add(-day), now.Add(100*day))
	for _, c := range []struct {
		name, pem string
		severity  Severity
		want      string
	}{
		{"fine", fine, OK, "100 days"},
		{"soon", certificate(t, now.Add(-day), now.Add(5*day+time.Hour)), Warning, "expires in 5 days"},
		{"the chain expires first", fine + certificate(t, now.Add(-day), now.Add(2*day)), Warning, "expires in 2 days"},
		{"expired", certificate(t, now.Add(-2*day), now.Add(-day)), Error, "expired on 2026-02-28"},
		{"not yet", certificate(t, now.Add(day), now.Add(100*day)), Error, "valid from"},
		{"no PEM", "hello", Error, "no certificate"},
		{"garbage", "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n", Error, "x509"},
		{"absent", "", Error, "not exist"},
	} {
		m := good()
		m.source = "<transport tls>\ncert_path /etc/weir/cert.pem\nprivate_key_path /etc/weir/key.pem\n</transport>"
		if c.pem != "" {
			m.set("etc/weir/cert.pem", c.pem)
		}
		found := false
		for _, f := range m.findings(t) {
			if f.Check == "certificates" {
				found = true
				if f.Severity != c.severity || !strings.Contains(f.Found, c.want) || f.Subject != "/etc/weir/cert.pem" {
					t.Errorf("%s: %+v", c.name, f)
				}
			}
		}
		if !found {
			t.Errorf("%s: nothing found", c.name)
		}
	}
}

// TestCertificateOfStatus: the status endpoint's counts as well.
func TestCertificateOfStatus(t *testing.T) {
	m := good()
	m.source = "</source>\n<source>\n@type monitor_agent\n<transport tls>\ncert_path /etc/weir/s.pem\nprivate_key_path /etc/weir/s.key\n</transport>"
	m.set("etc/weir/s.pem", certificate(t, now.Add(-48*time.Hour), now.Add(-24*time.Hour)))
	for _, f := range m.findings(t) {
		if f.Check == "certificates" && f.Severity == Error && f.Subject == "/etc/weir/s.pem" {
			return
		}
	}
	t.Error("an expired certificate of the status endpoint is not found")
}

// TestUnreadable: whatever file is missing or holds garbage, no check crashes,
// and one that cannot be made says so.
func TestUnreadable(t *testing.T) {
	for path := range good().files {
		for _, text := range []string{"", "garbage", "-1", "99999999999999999999", "a b c d e f g h i j k l m n o p\n", "x: 1\nTcpExt: a\nUdp: b\n"} {
			m := good()
			m.set(path, text)
			m.findings(t)
		}
		m := good()
		delete(m.files, path)
		m.findings(t)
	}
	m := good()
	host, target := m.build(t)
	host.Root = fstest.MapFS{}
	host.Sockets = func() ([]netopt.ListenSocket, error) { return nil, errors.New("no netlink") }
	host.Clock = func() (Clock, error) { return Clock{}, errors.New("no clock") }
	host.FileSystem = func(string) (FileSystem, error) { return FileSystem{}, errors.New("no disk") }
	notes := 0
	for _, f := range Run(t.Context(), host, target) {
		if strings.HasPrefix(f.Found, "could not be checked") {
			notes++
		}
	}
	if notes < 10 {
		t.Errorf("only %d checks say that they could not be made", notes)
	}
}

// TestCheap: a running weir leaves out what writes, and what is fine.
func TestCheap(t *testing.T) {
	m := good()
	m.set("proc/sys/net/ipv4/tcp_syncookies", "0")
	host, target := m.build(t)
	host.Probe = func(context.Context, string) (Probe, error) {
		t.Error("the disk was written to")
		return Probe{}, nil
	}
	got := RunCheap(t.Context(), host, target)
	if len(got) != 2 || got[0].Check != "syncookies" || got[1].Check != "max-syn-backlog" {
		t.Errorf("%+v", got)
	}
}

func TestWriteSysctl(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(m *machine)
		want    []string
		without []string
	}{
		{"good", func(*machine) {}, []string{"net.core.somaxconn = 4096", "net.ipv4.tcp_syncookies = 1", "net.ipv4.tcp_abort_on_overflow = 0"}, []string{"conntrack", "reserved", "nr_open", "tcp_max_syn_backlog ="}},
		{"asked", func(m *machine) { m.source = "backlog 16384" }, []string{"net.core.somaxconn = 16384"}, nil},
		{"larger already", func(m *machine) { m.set("proc/sys/net/core/somaxconn", "65535") }, []string{"net.core.somaxconn = 65535"}, nil},
		{"range", func(m *machine) { m.set("proc/sys/net/ipv4/ip_local_port_range", "1024 60999") }, []string{"net.ipv4.ip_local_reserved_ports = 24224,24220"}, nil},
		{"conntrack and files", func(m *machine) {
			m.set("proc/sys/net/netfilter/nf_conntrack_max", "1000")
			m.set("proc/sys/fs/nr_open", "1000")
		}, []string{"net.netfilter.nf_conntrack_max = 65536", "fs.nr_open = 263168"}, nil},
		{"fleet", func(m *machine) {
			m.fleet = &fleet.Fleet{Senders: 5000, Heartbeat: fleet.TCP, HeartbeatEvery: time.Second, FlushEvery: 10 * time.Second, Keepalive: true, Stall: time.Second}
		}, []string{"net.core.somaxconn = 16384", "nf_conntrack_max = 1210000"}, nil},
	} {
		m := good()
		c.change(m)
		host, target := m.build(t)
		var b bytes.Buffer
		if err := WriteSysctl(t.Context(), &b, host, target); err != nil {
			t.Fatal(err)
		}
		for _, want := range c.want {
			if !strings.Contains(b.String(), want+"\n") {
				t.Errorf("%s: lacks %q:\n%s", c.name, want, &b)
			}
		}
		for _, not := range c.without {
			if strings.Contains(b.String(), not) {
				t.Errorf("%s: has %q:\n%s", c.name, not, &b)
			}
		}
	}
}

func TestWriteText(t *testing.T) {
	all := []Finding{
		{Check: "a", Severity: OK, Found: "fine"},
		{Check: "b", Severity: Warning, Subject: "thing", Found: "so \x1b[2J so", Why: "reason", Mend: "command", Doc: "docs/doctor.md#b"},
		{Check: "c", Severity: Error, Found: "bad"},
	}
	for _, colour := range []bool{false, true} {
		var b bytes.Buffer
		if err := WriteText(&b, all, colour); err != nil {
			t.Fatal(err)
		}
		text := b.String()
		if strings.Contains(text, "\x1b[2J") || strings.Contains(text, "\x1b[1;31m") != colour {
			t.Errorf("%q", text)
		}
		e, w, o := strings.Index(text, "ERROR"), strings.Index(text, "WARNING"), strings.Index(text, "OK")
		if e < 0 || w < e || o < w || !strings.HasSuffix(text, "\n1 error, 1 warning, 1 ok\n") || !strings.Contains(text, "mend: command") {
			t.Errorf("%s", text)
		}
	}
	if Worst(all) != Error || Worst(nil) != OK {
		t.Error(fmt.Sprint(Worst(all), Worst(nil)))
	}
}

func TestUnitValues(t *testing.T) {
	for text, want := range map[string]time.Duration{"90": 90 * time.Second, "1min 30s": 90 * time.Second, "500ms": 500 * time.Millisecond, "2 min": 2 * time.Minute, "1h": time.Hour, "5sec": 5 * time.Second} {
		if got, err := unitTime(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for text, want := range map[string]int64{"1024": 1024, "1024:4096": 4096, "64M": 64 << 20, "1G": 1 << 30} {
		if got, err := unitSize(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := unitTime("soon"); err == nil {
		t.Error("no error for soon")
	}
}
