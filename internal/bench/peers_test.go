package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/forward"
	"weir/internal/config"
	"weir/internal/load"
)

// asPeer, in the environment, makes the test binary a receiver that is started
// as fluentd is.
const asPeer = "WEIR_BENCH_TEST_PEER"

func TestMain(m *testing.M) {
	if os.Getenv(asPeer) == "" {
		os.Exit(m.Run())
	}
	if err := receive(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// receive acks everything at the port that fluentd's configuration names.
func receive(args []string) error {
	if len(args) == 2 && args[1] == "--version" {
		fmt.Println("receiver 1.2.3\nof no use")
		return nil
	}
	if len(args) != 4 || args[0] != "an-argument" || args[1] != "-c" || args[3] != "--no-supervisor" {
		return fmt.Errorf("started with %q", args)
	}
	c, err := config.Load(args[2], config.OSEnv())
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Sources[0].Addresses[0])
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	srv, err := forward.NewServer(forward.Config{Handler: ackAll{}})
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	return srv.Serve(l)
}

type ackAll struct{}

func (ackAll) Handle(_ context.Context, m *forward.Message) { m.Done(nil) }

// script is a program in a directory of its own.
func script(t *testing.T, body string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "peer")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestPeersThatCannotRunAreErrors(t *testing.T) {
	broken := script(t, "echo no such gem >&2; exit 3")
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"-fluentd", "no-such-fluentd -x"}, []string{`-fluentd "no-such-fluentd -x"`, "not found", "leave the flag out"}},
		{[]string{"-fluentbit", "/nowhere/fluent-bit"}, []string{`-fluentbit "/nowhere/fluent-bit"`, "no such file"}},
		{[]string{"-otel", "/nowhere/otel"}, []string{`-otel "/nowhere/otel"`, "no such file"}},
		{[]string{"-fluentd", broken}, []string{"-fluentd", "--version", "exit status 3", "no such gem"}},
	} {
		err := run(t.Context(), append(c.args, "-only", "no case has this name"))
		if err == nil {
			t.Errorf("%q: no error", c.args)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v; want %q in it", c.args, err, want)
			}
		}
	}
}

func TestNoPeersUnlessAsked(t *testing.T) {
	peers, err := findPeers("", " ", "")
	if err != nil || len(peers) != 0 {
		t.Errorf("%v, %v", peers, err)
	}
}

// The one configuration is in weir's language, so that its parser can tell
// whether it says what is meant.
func TestFluentdConfig(t *testing.T) {
	c, err := config.Parse("fluentd.conf", fluentdConfig("/data/run-1", 24999), config.OSEnv())
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Sources) != 1 || len(c.Sources[0].Addresses) != 1 || c.Sources[0].Addresses[0] != "127.0.0.1:24999" || c.Sources[0].Backlog != peerBacklog {
		t.Errorf("sources: %+v", c.Sources)
	}
	matches := c.Routes[""]
	if len(matches) != 1 || len(matches[0].Outputs) != 1 || matches[0].Outputs[0].Type != "null" {
		t.Fatalf("matches: %+v", matches)
	}
	if b := matches[0].Buffer; b.Path != "/data/run-1/buffer" || b.ChunkLimit != 256<<20 {
		t.Errorf("buffer: %+v", b)
	}
}

func TestFluentBitConfig(t *testing.T) {
	p := peer{command: []string{"/opt/fluent-bit", "-q"}, kind: "fluentbit", conf: "fluent-bit.conf", config: fluentBitConfig}
	dir := t.TempDir()
	args, err := p.arguments(dir, 24999)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(args, " "), "/opt/fluent-bit -q -c "+dir+"/fluent-bit.conf"; got != want {
		t.Errorf("arguments %q, want %q", got, want)
	}
	b, err := os.ReadFile(filepath.Join(dir, "fluent-bit.conf"))
	if err != nil {
		t.Fatal(err)
	}
	section, got := "", map[string]string{}
	for line := range strings.Lines(string(b)) {
		switch f := strings.Fields(line); {
		case len(f) == 1 && strings.HasPrefix(line, "["):
			section = f[0]
		case len(f) == 2 && strings.HasPrefix(line, "    "):
			got[section+f[0]] = f[1]
		default:
			t.Errorf("line %q", line)
		}
	}
	for key, want := range map[string]string{"[SERVICE]storage.path": dir + "/buffer", "[INPUT]name": "forward", "[INPUT]port": "24999",
		"[INPUT]listen": "127.0.0.1", "[INPUT]storage.type": "filesystem", "[OUTPUT]name": "null", "[OUTPUT]match": "*"} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
}

func TestPeersGetTheirLines(t *testing.T) {
	b := &bench{duration: time.Second, peers: []peer{{name: "A", kind: "a"}, {name: "B", kind: "b"}}}
	seen, kinds := map[string]bool{}, map[string][]string{}
	for _, l := range b.lines() {
		if seen[l.name] {
			t.Errorf("two lines %q", l.name)
		}
		seen[l.name] = true
		kinds[l.kind] = append(kinds[l.kind], l.name)
		o := l.load
		o.Address = "127.0.0.1:1"
		if err := o.Check(); err != nil {
			t.Errorf("%s: %v", l.name, err)
		}
	}
	for kind, name := range map[string]string{"a": "A", "b": "B", "weir": "weir"} {
		for _, want := range []string{" packed", " forward", " gzip", " message", " 2000 connections/s", " connections that only close"} {
			n := 0
			for _, got := range kinds[kind] {
				if strings.HasPrefix(got, name+want) {
					n++
				}
			}
			if n == 0 {
				t.Errorf("no line %q", name+want)
			}
		}
	}
}

// selfPeer is this binary in fluentd's place.
func selfPeer(t *testing.T) peer {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	peers, err := findPeers("", script(t, asPeer+"=1 exec "+self+` "$@"`)+" an-argument", "")
	if err != nil {
		t.Fatal(err)
	}
	return peers[0]
}

func TestMeasurePeer(t *testing.T) {
	b := &bench{dir: t.TempDir(), duration: 200 * time.Millisecond, rounds: 1, until: time.Now().Add(time.Hour), peers: []peer{selfPeer(t)}}
	if b.peers[0].version != "receiver 1.2.3" {
		t.Errorf("version %q", b.peers[0].version)
	}
	// On a busy machine the time of a round can be up before anything is sent.
	measure := func(l line) *load.Report {
		for limit := time.Now().Add(time.Minute); ; {
			rep, err := b.measure(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			if rep.Events > 0 || (l.load.Storm > 0 && rep.Connections > 0) || time.Now().After(limit) {
				return rep
			}
		}
	}
	rep := measure(line{"peer packed", "fluentd", b.options("packed", 2)})
	if rep.Events == 0 || rep.AckedEvents != rep.Events || rep.Server.PeakRSS == 0 {
		t.Errorf("%+v, server %+v", rep, rep.Server)
	}
	for _, storm := range b.storms("peer", "fluentd") {
		if rep := measure(storm); rep.Connections == 0 || rep.Events != 0 {
			t.Errorf("%s: %+v", storm.name, rep)
		}
	}
	left, err := os.ReadDir(b.dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestPeerThatEndsIsToldAtOnce(t *testing.T) {
	b := &bench{dir: t.TempDir(), duration: time.Second, rounds: 1, until: time.Now().Add(time.Hour)}
	for body, want := range map[string]string{
		"echo out of memory; exit 7": "it ended: exit status 7\nout of memory",
		"exit 0":                     "it ended by itself",
	} {
		var err error
		if b.peers, err = findPeers("", "", script(t, `[ "$1" = --version ] && exit 0
`+body)); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		_, err = b.measure(t.Context(), line{"peer packed", "fluentbit", b.options("packed", 1)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", body, err, want)
		}
		if took := time.Since(begun); took >= startGrace {
			t.Errorf("%s: only noticed after %v", body, took)
		}
	}
}
