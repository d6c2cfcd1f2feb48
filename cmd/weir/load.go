package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"weir/internal/load"
)

// loadFlags are the flags of `weir load` that are no load.Options as they are.
type loadFlags struct {
	progress, asJSON, useTLS, insecure bool
	sample, heartbeat, ca, user        string
}

func newLoadCommand() *cobra.Command {
	var o load.Options
	var f loadFlags
	cmd := &cobra.Command{
		Use:   "load [ADDRESS]",
		Short: "Send load to a receiver of the Forward protocol and measure it",
		Long: `Send load to any receiver of the Forward protocol (weir, fluentd, Fluent Bit) and
measure it: rates, latencies, the kernel's drops, the server's CPU, lost and
repeated events. ADDRESS is host:port or unix:PATH, 127.0.0.1:24224 without one.

With --rate chunks leave by the clock, and their latency counts from the time
at which they were due, also if the receiver held up the ones before. Without,
each connection sends as fast as acks (--window) and the socket allow.

Each event has an id of its own, in the field id. --verify looks for all that were
acked (without acks: sent) in files, in directories, and in files that end in .gz.

Ctrl-C ends the load as if its time were up, and prints the report; once more, and
nothing is waited for.

The exit code is 0 if every chunk was acked, every heartbeat answered, and --verify
found every event once; without acks, if no connection broke.`,
		Example: `  weir load --duration 30s --connections 4 --pid $(pidof weir)
  weir load --mode message --rate 5000 --connections 16 --window 8
  weir load --senders 2000 --heartbeat tcp:1s --flush 5s --duration 1m
  weir load --burst 6000
  weir load --count 1000000 --verify '/var/log/weir/*.log'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Address = "127.0.0.1:24224"
			if len(args) > 0 {
				o.Address = args[0]
			}
			if err := f.apply(cmd, &o); err != nil {
				return err
			}
			ctx, release := interruptible(cmd.Context(), &o)
			defer release()
			return runLoad(ctx, cmd, o, f.asJSON)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&o.Mode, "mode", "packed", "packed, forward, message, gzip, zstd or json")
	fl.IntVar(&o.Events, "events", 1000, "events of a chunk; 1 in the modes message and json")
	fl.IntVar(&o.Size, "size", 277, "bytes of an event")
	fl.StringVar(&f.sample, "sample", "", "file whose lines are the records instead, in turn: JSON objects, or text; may be gzip")
	fl.BoolVar(&o.CompressEach, "compress-each", false, "gzip, zstd: compress every chunk anew, with ids of its own")
	fl.StringVar(&o.Tag, "tag", "load", "tag of the events")
	fl.IntVar(&o.Tags, "tags", 1, "how many different tags, numbered")
	fl.BoolVar(&o.Ack, "ack", true, "ask for acks")
	fl.DurationVar(&o.AckTimeout, "ack-timeout", 30*time.Second, "give up a connection, and send again, without an ack for so long")
	fl.IntVar(&o.Connections, "connections", 1, "connections that send side by side")
	fl.BoolVar(&o.KeepAlive, "keepalive", true, "keep connections open; false: a new one for every chunk")
	fl.IntVar(&o.Window, "window", 1, "chunks of a connection that may wait for their ack")
	fl.IntVar(&o.Senders, "senders", 0, "a fleet of so many senders, in place of --connections")
	fl.StringVar(&f.heartbeat, "heartbeat", "tcp:1s", "of each sender: tcp:INTERVAL, udp:INTERVAL or none")
	fl.DurationVar(&o.Flush, "flush", 5*time.Second, "each sender sends a chunk every so often")
	fl.Float64Var(&o.Storm, "storm", 0, "only connect and close, so many times a second")
	fl.IntVar(&o.Burst, "burst", 0, "only open so many connections at once")
	fl.IntVar(&o.Idle, "idle", 0, "hold so many idle connections open beside the load")
	fl.Float64Var(&o.Rate, "rate", 0, "events a second, by the clock (default: as fast as possible)")
	fl.DurationVar(&o.Duration, "duration", 10*time.Second, "how long (with --count: no bound unless given)")
	fl.Uint64Var(&o.Count, "count", 0, "how many events, rounded up to chunks (default: as many as --duration allows)")
	fl.BoolVar(&f.useTLS, "tls", false, "use TLS")
	fl.StringVar(&f.ca, "ca", "", "file of the CA certificates to trust, with --tls (default: the system's)")
	fl.BoolVar(&f.insecure, "insecure", false, "with --tls: trust any certificate")
	fl.StringVar(&o.SharedKey, "shared-key", "", "shared key of the handshake")
	fl.StringVar(&f.user, "user", "", "NAME:PASSWORD for the handshake")
	fl.StringVar(&o.Hostname, "hostname", "", "own name in the handshake (default: this machine's)")
	fl.IntVar(&o.PID, "pid", 0, "the server's process, whose CPU and memory to report")
	fl.StringArrayVar(&o.Verify, "verify", nil, "file, directory or quoted pattern in which every event must be found once; may be repeated")
	fl.DurationVar(&o.VerifyWait, "verify-wait", 30*time.Second, "how long events may take to get there")
	fl.BoolVar(&f.progress, "progress", false, "a line a second on stderr (default: if that is a terminal)")
	fl.BoolVar(&f.asJSON, "json", false, "print JSON")
	return cmd
}

// apply brings the flags into the options.
func (f *loadFlags) apply(cmd *cobra.Command, o *load.Options) error {
	set := cmd.Flags().Changed
	if (o.Mode == "message" || o.Mode == "json") && !set("events") {
		o.Events = 1
	}
	if o.Count > 0 && !set("duration") {
		o.Duration = 0
	}
	if err := f.idle(set, o); err != nil {
		return err
	}
	kind, every, _ := strings.Cut(f.heartbeat, ":")
	switch kind {
	case "tcp", "udp":
		d, err := time.ParseDuration(every)
		if err != nil || d <= 0 {
			return fmt.Errorf("--heartbeat %q: must be tcp:INTERVAL, udp:INTERVAL or none", f.heartbeat)
		}
		o.HeartbeatEvery = d
	case "none":
	default:
		return fmt.Errorf("--heartbeat %q: must be tcp:INTERVAL, udp:INTERVAL or none", f.heartbeat)
	}
	o.Heartbeat = kind
	if f.sample != "" {
		b, err := load.ReadSample(f.sample)
		if err != nil {
			return fmt.Errorf("--sample: %w", err)
		}
		o.Sample = b
	}
	if f.user != "" {
		name, password, ok := strings.Cut(f.user, ":")
		if !ok || o.SharedKey == "" {
			return errors.New("--user: must be NAME:PASSWORD, with --shared-key")
		}
		o.Username, o.Password = name, password
	}
	switch {
	case f.useTLS:
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: f.insecure}
		if f.ca != "" {
			b, err := os.ReadFile(f.ca)
			if err != nil {
				return fmt.Errorf("--ca: %w", err)
			}
			o.TLS.RootCAs = x509.NewCertPool()
			if !o.TLS.RootCAs.AppendCertsFromPEM(b) {
				return fmt.Errorf("--ca %s: no certificate in it; it must be PEM", f.ca)
			}
		}
	case f.ca != "" || f.insecure:
		return errors.New("--ca, --insecure: need --tls")
	}
	stderr, isFile := cmd.ErrOrStderr().(*os.File)
	terminal := isFile && term.IsTerminal(int(stderr.Fd()))
	if terminal && (f.progress || !set("progress")) {
		o.Progress, o.Width = stderr, defaultWidth
		if w, _, err := term.GetSize(int(stderr.Fd())); err == nil && w > 1 {
			o.Width = w
		}
	} else if f.progress {
		o.Progress = cmd.ErrOrStderr()
	}
	return o.Check()
}

// defaultWidth is that of a terminal that does not tell its own, in columns.
const defaultWidth = 80

// idle finds flags that would do nothing: who gives one believes that it does.
func (f *loadFlags) idle(set func(string) bool, o *load.Options) error {
	only := func(when bool, because string, names ...string) error {
		for _, name := range names {
			if when && set(name) {
				return fmt.Errorf("--%s: does nothing %s", name, because)
			}
		}
		return nil
	}
	connects := []string{"mode", "events", "size", "sample", "compress-each", "tag", "tags", "ack", "keepalive", "connections", "window", "rate", "count",
		"tls", "ca", "insecure", "shared-key", "user", "hostname"}
	for _, err := range []error{
		only(o.Senders == 0, "without --senders", "heartbeat", "flush"),
		only(o.Senders > 0, "with --senders: each has one connection and sends a chunk at each --flush", "connections", "window", "rate"),
		only(o.Storm > 0, "with --storm, which only connects and closes", connects...),
		only(o.Burst > 0, "with --burst, which only connects", append(connects, "duration")...),
		only(f.sample != "", "with --sample, whose lines have a size of their own", "size"),
		only(o.Mode != "gzip" && o.Mode != "zstd", "but in the modes gzip and zstd", "compress-each"),
		only(!o.Ack, "without acks", "window"),
		only(len(o.Verify) == 0, "without --verify", "verify-wait"),
		only(o.SharedKey == "", "without --shared-key", "hostname"),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// interruptible returns the context of a run. The first SIGINT or SIGTERM ends it as
// if its time were up, the second one at once.
func interruptible(parent context.Context, o *load.Options) (ctx context.Context, release func()) {
	ctx, cancel := context.WithCancel(parent)
	signals, stop, done := make(chan os.Signal, 2), make(chan struct{}), make(chan struct{})
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	o.Stop = stop
	go func() {
		defer close(done)
		select {
		case <-signals:
			close(stop)
		case <-ctx.Done():
			return
		}
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel()
		<-done
	}
}

// runLoad runs the load and prints its report.
func runLoad(ctx context.Context, cmd *cobra.Command, o load.Options, asJSON bool) error {
	rep, err := load.Run(ctx, o)
	if rep == nil {
		return err
	}
	if asJSON {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		return errors.Join(err, enc.Encode(rep))
	}
	return errors.Join(err, rep.WriteText(cmd.OutOrStdout()))
}
