package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// versionGrace is how long a peer may take to tell its version: fluentd loads
// all of Ruby for it.
const versionGrace = 30 * time.Second

// peer is another receiver, run beside weir.
type peer struct {
	name    string   // in the table
	kind    string   // of bench.start
	version string   // its own word, empty if it has none
	command []string // what starts it, without the arguments that the bench adds
	conf    string   // name of its configuration, empty if it needs none
	config  func(dir string, port int) string
}

// findPeers returns the peers whose command is not empty. It fails if one is not
// there or does not start: a table without the row that was asked for would
// look like one in which nobody asked.
func findPeers(otel, fluentd, fluentBit string) ([]peer, error) {
	var peers []peer
	for _, p := range []struct {
		flag, command string
		peer          peer
	}{
		{"otel", otel, peer{name: "OpenTelemetry fluentforward", kind: "otel"}},
		{"fluentd", fluentd, peer{name: "fluentd", kind: "fluentd", conf: "fluentd.conf", config: fluentdConfig}},
		{"fluentbit", fluentBit, peer{name: "Fluent Bit", kind: "fluentbit", conf: "fluent-bit.conf", config: fluentBitConfig}},
	} {
		words := strings.Fields(p.command)
		if len(words) == 0 {
			continue
		}
		path, err := exec.LookPath(words[0])
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return nil, fmt.Errorf("-%s %q: %w; give the command that starts it, or leave the flag out", p.flag, p.command, err)
		}
		words[0] = path
		p.peer.command = words
		if p.peer.config != nil {
			if p.peer.version, err = version(words); err != nil {
				return nil, fmt.Errorf("-%s %q: %w", p.flag, p.command, err)
			}
		}
		peers = append(peers, p.peer)
	}
	return peers, nil
}

// version is the first line that a command answers to --version.
func version(command []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), versionGrace)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], append(command[1:len(command):len(command)], "--version")...)
	cmd.WaitDelay = time.Second // for children that hold its output open
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("--version: %w\n%s", err, said.String())
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line), nil
}

// arguments are all words of the command that starts the peer on a port, with
// everything that it writes below dir, where its configuration is put.
func (p peer) arguments(dir string, port int) ([]string, error) {
	args := p.command[:len(p.command):len(p.command)]
	if p.config == nil {
		return append(args, fmt.Sprintf("127.0.0.1:%d", port), filepath.Join(dir, "out")), nil
	}
	conf := filepath.Join(dir, p.conf)
	if err := os.WriteFile(conf, []byte(p.config(dir, port)), 0o600); err != nil {
		return nil, err
	}
	args = append(args, "-c", conf)
	if p.kind == "fluentd" {
		args = append(args, "--no-supervisor") // the process that is measured does the work
	}
	return args, nil
}

// peerBacklog is asked for by peers: the kernel caps it at somaxconn, which is
// what weir takes by itself. With their own defaults a storm measures how long
// the sender waits for dropped SYNs.
const peerBacklog = 65535

// fluentdConfig is in_forward before a file buffer before nothing. out_null
// would limit a chunk to 10 KiB, so that each message were split: it gets the
// limit that a file buffer has by itself. A flush each second is Fluent Bit's
// pace as well.
func fluentdConfig(dir string, port int) string {
	return fmt.Sprintf(`<system>
  log_level error
</system>
<source>
  @type forward
  bind 127.0.0.1
  port %d
  backlog %d
</source>
<match **>
  @type null
  <buffer tag>
    @type file
    path %s
    chunk_limit_size 256m
    flush_mode interval
    flush_interval 1s
  </buffer>
</match>
`, port, peerBacklog, filepath.Join(dir, "buffer"))
}

// fluentBitConfig is the same of Fluent Bit: chunks in the file system.
func fluentBitConfig(dir string, port int) string {
	return fmt.Sprintf(`[SERVICE]
    flush 1
    log_level error
    storage.path %s
[INPUT]
    name forward
    listen 127.0.0.1
    port %d
    net.backlog %d
    storage.type filesystem
[OUTPUT]
    name null
    match *
`, filepath.Join(dir, "buffer"), port, peerBacklog)
}
