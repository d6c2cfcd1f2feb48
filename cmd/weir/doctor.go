package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"weir/internal/config"
	"weir/internal/doctor"
	"weir/internal/fleet"
	"weir/internal/status"
)

// Exit codes of weir doctor.
const (
	doctorWarnings = 1
	doctorErrors   = 2
	doctorFailed   = 3
)

// exitError is an outcome with an exit code of its own. err is nil if everything
// has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// doctorOptions are the flags of weir doctor.
type doctorOptions struct {
	asJSON, sysctl bool
	address        string
	senders        int
	heartbeat      string
	flush, stall   time.Duration
	flushSize      int64
	keepalive      bool
}

func newDoctorCommand(configPath *string) *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this machine against the configuration, and say what to mend",
		Long: `Check this machine against the configuration: the kernel's queues, counters and
limits, disks, clock, certificates, and the unit or container that weir runs in.
Each finding says what was found, why it matters for this configuration, and the
command or the file that mends it.

If weir runs, its listeners are read as they are; otherwise what the
configuration would get. Run it as root, or as the user that weir runs as: what
cannot be read is said. To measure the disk it writes a file of 8 MiB beside the
buffer and removes it.

With --senders it also simulates a fleet and says what is too small for it; the
other flags of the fleet are defaults of fluentd's out_forward.

Exit codes: 0 nothing to mend, 1 warnings, 2 errors, 3 the doctor could not run.`,
		Example: `  weir doctor -c /etc/weir/weir.conf
  weir doctor --senders 400 --heartbeat tcp:1s --flush 5s --stall 500ms
  weir doctor --sysctl > /etc/sysctl.d/60-weir.conf`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.NoArgs(cmd, args); err != nil {
				return &exitError{doctorFailed, err}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			var exit *exitError
			err := runDoctor(cmd, *configPath, o)
			if err != nil && !errors.As(err, &exit) {
				err = &exitError{doctorFailed, err}
			}
			return err
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{doctorFailed, err} })
	f := cmd.Flags()
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	f.BoolVar(&o.sysctl, "sysctl", false, "print a file for /etc/sysctl.d and nothing else")
	f.StringVar(&o.address, "address", "", "host:port of the status endpoint (default: from the configuration)")
	f.IntVar(&o.senders, "senders", 0, "simulate a fleet of so many senders")
	f.StringVar(&o.heartbeat, "heartbeat", "tcp:1s", "their heartbeats: tcp:INTERVAL, udp:INTERVAL or none")
	f.DurationVar(&o.flush, "flush", 5*time.Second, "time between two chunks of a sender")
	f.Int64Var(&o.flushSize, "flush-size", 64<<10, "bytes of a chunk")
	f.BoolVar(&o.keepalive, "keepalive", false, "senders keep their connection (keepalive true in out_forward)")
	f.DurationVar(&o.stall, "stall", 500*time.Millisecond, "time for which weir accepts and stores nothing")
	return cmd
}

func runDoctor(cmd *cobra.Command, configPath string, o doctorOptions) error {
	c, err := loadConfig(configPath)
	if err != nil {
		return err
	}
	if o.asJSON && o.sysctl {
		return errors.New("give --json or --sysctl, not both")
	}
	if o.senders == 0 {
		for _, name := range []string{"heartbeat", "flush", "flush-size", "keepalive", "stall"} {
			if cmd.Flags().Changed(name) || cmd.Flags().Changed("senders") {
				return errors.New("give --senders N, at least 1, with --heartbeat, --flush, --flush-size, --keepalive or --stall")
			}
		}
	}
	m := doctor.Host()
	t := doctor.Target{Config: c}
	// A weir that does not run is usual, one that was named and does not answer is
	// not. A certificate that cannot be read is a finding.
	e, err := endpointOf(c, o.address)
	if err == nil {
		t.Running, err = running(cmd.Context(), e)
	}
	if err != nil && o.address != "" {
		return err
	}
	if o.senders != 0 {
		if t.Fleet, err = simulate(cmd.Context(), m, t, o); err != nil {
			return err
		}
	}
	out := cmd.OutOrStdout()
	if o.sysctl {
		return doctor.WriteSysctl(cmd.Context(), out, m, t)
	}
	findings := doctor.Run(cmd.Context(), m, t)
	if err := writeDoctor(out, findings, t, o.asJSON); err != nil {
		return err
	}
	switch doctor.Worst(findings) {
	case doctor.Error:
		return &exitError{code: doctorErrors}
	case doctor.Warning:
		return &exitError{code: doctorWarnings}
	}
	return nil
}

func writeDoctor(out io.Writer, findings []doctor.Finding, t doctor.Target, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(struct {
			Worst    doctor.Severity  `json:"worst"`
			Findings []doctor.Finding `json:"findings"`
			Fleet    *fleet.Result    `json:"fleet,omitempty"`
		}{doctor.Worst(findings), findings, t.Fleet})
	}
	if t.Fleet != nil {
		if err := t.Fleet.WriteText(out); err != nil {
			return err
		}
		fmt.Fprintln(out)
	}
	f, isFile := out.(*os.File)
	colour := isFile && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""
	return doctor.WriteText(out, findings, colour)
}

// running asks the weir at e for its listeners.
func running(ctx context.Context, e *endpoint) (*doctor.Running, error) {
	body, err := e.fetchStatus(ctx)
	if err != nil {
		return nil, err
	}
	var s status.Snapshot
	if err := json.Unmarshal(body, &s); err != nil {
		return nil, fmt.Errorf("the answer of %s is not weir's: %w", e.address, err)
	}
	return runningOf(&s), nil
}

func runningOf(s *status.Snapshot) *doctor.Running {
	r := &doctor.Running{PID: s.PID}
	for _, l := range s.Listeners {
		r.Listeners = append(r.Listeners, doctor.RunningListener{Address: l.Name, Asked: l.Asked, Granted: l.Granted})
	}
	return r
}

// simulate runs the fleet against this machine: its CPUs, the smallest backlog of
// the listeners, the buffer's disk.
func simulate(ctx context.Context, m *doctor.Machine, t doctor.Target, o doctorOptions) (*fleet.Result, error) {
	kind, every, err := fleet.ParseHeartbeat(o.heartbeat)
	if err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	f := fleet.Fleet{Senders: o.senders, Heartbeat: kind, HeartbeatEvery: every, FlushEvery: o.flush, FlushBytes: o.flushSize, Keepalive: o.keepalive, Stall: o.stall}
	if err := f.Validate(); err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	s := fleet.Server{Cores: float64(m.CPUs), Backlog: doctor.SmallestBacklog(m, t), CommitTime: time.Millisecond}
	if path := firstBuffer(t.Config); path != "" {
		if p, err := m.Probe(ctx, path); err == nil && len(p.Writes) > 0 {
			s.CommitTime, s.DiskBytes = time.Duration(math.MaxInt64), p.Bandwidth
			for _, w := range p.Writes {
				s.CommitTime = min(s.CommitTime, w)
			}
		}
	}
	return fleet.Simulate(f, s, fleet.MeasuredCosts())
}

func firstBuffer(c *config.Config) string {
	for _, m := range allMatches(c) {
		return m.Buffer.Path
	}
	return ""
}
