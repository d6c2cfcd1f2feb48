package top

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
	"go.uber.org/goleak"

	"weir/internal/doctor"
	"weir/internal/queue"
	"weir/internal/status"
)

var update = flag.Bool("update", false, "write the golden screens anew")

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.Local)

// busy is a weir under load with a backlog that was not granted.
func busy() *status.Frame {
	now := start.Add(3*time.Hour + 17*time.Minute)
	next := now.Add(12 * time.Second)
	over := now.Add(-time.Minute)
	s := &status.Snapshot{
		Version: "1.2.3", PID: 42, Started: start, Now: now, SendersKnown: 400,
		Listeners: []status.Listener{{Name: "0.0.0.0:24224", Asked: 16384, Granted: 128, LimitedBy: "net.core.somaxconn", Mend: "sysctl -w net.core.somaxconn=16384"}},
		Queues: []queue.Queue{
			{Name: queue.SYN, Instance: "0.0.0.0:24224", Unit: queue.UnitConnections, Depth: 3, Capacity: 128, Peak: 40},
			{Name: queue.Accept, Instance: "0.0.0.0:24224", Unit: queue.UnitConnections, Depth: 129, Capacity: 128, Peak: 129, Dropped: 371},
			{Name: queue.Connections, Instance: "forward", Unit: queue.UnitConnections, Depth: 612, Capacity: 65536, Peak: 3004},
			{Name: queue.Socket, Instance: "0.0.0.0:24224", Unit: queue.UnitBytes, Depth: 0, Peak: 0},
			{Name: queue.Memory, Instance: "forward", Unit: queue.UnitBytes, Depth: 30 << 20, Capacity: 1 << 30, Peak: 400 << 20},
			{Name: queue.Commit, Instance: "app.**", Unit: queue.UnitEntries, Depth: 12, Peak: 40},
			{Name: queue.Buffer, Instance: "app.**", Unit: queue.UnitBytes, Depth: 55 << 30, Capacity: 64 << 30, Peak: 56 << 30},
			{Name: queue.Output, Instance: "evil\x1b[2J\nname", Unit: queue.UnitBytes, Depth: 55 << 30, Peak: 56 << 30},
		},
		Buffers: []status.Buffer{
			{Name: "app.**", Bytes: 55 << 30, Limit: 64 << 30, Chunks: 1712, Spares: 2, Oldest: 7384.2, Commits: 1234567, FailedCommits: 3, Durable: true, DiskFree: 3 << 30, DiskSize: 80 << 30},
			{Name: "audit", Limit: 1 << 30, Chunks: 1, Commits: 17, Durable: true, Direct: true, DiskFree: 700 << 30, DiskSize: 800 << 30},
		},
		Findings: []doctor.Finding{
			{Check: "clock", Severity: doctor.Warning, Subject: "clock", Found: "not synchronised"},
			{Check: "tw-reuse", Severity: doctor.Note, Found: "a note is not worth a line"},
			{Check: "certificates", Severity: doctor.Error, Subject: "/etc/weir/cert.pem", Found: "CN=logs expired on 2026-02-28"},
		},
		Damaged:     []status.Damaged{{Match: "app.**", Chunks: 1}},
		Quarantines: []status.Quarantine{{Match: "audit", Items: 12}},
		Outputs: []status.Output{
			{ID: "to-warehouse", Match: "app.**", DeliveredEvents: 3635170, PendingBytes: 55 << 30, PendingChunks: 1712, Retries: 41, Step: 5, NextRetry: &next, LastError: "connection refused"},
			{ID: "archive", Match: "app.**", DeliveredEvents: 7270340},
		},
		Alerts: []status.Alert{
			{Name: "connections_dropped", Subject: "0.0.0.0:24224", Message: "12 dropped in 1 s", Since: now.Add(-time.Minute)},
			{Name: "syn_cookies", Subject: "0.0.0.0:24224", Message: "is over", Since: start, Until: &over},
		},
	}
	for i := range 40 {
		s.Senders = append(s.Senders, status.Sender{Address: fmt.Sprintf("10.4.0.%d", 10+i), Open: int64(i % 4), ConnectionsPerSecond: float64(i) / 10,
			HeartbeatsPerSecond: float64(40-i) / 10, Events: uint64(1000 * (i%7 + 1)), Bytes: uint64(1000 * i), Resends: uint64(i % 3)})
	}
	return &status.Frame{Snapshot: s, Point: &status.Point{Events: 98569, Bytes: 25 << 20, Connections: 2919, Heartbeats: 428, Dropped: 97,
		Ack: &status.Quantiles{P50: 0.0015, P99: 0.0452}, Commit: &status.Quantiles{P50: 250e-6, P99: 1.25}}}
}

// quiet is a weir that has just begun.
func quiet() *status.Frame {
	f := busy()
	f.Point = nil
	s := f.Snapshot
	s.Listeners[0].Granted, s.Senders, s.Alerts, s.Outputs, s.Buffers = 16384, nil, nil, nil, nil
	s.Queues = s.Queues[:3]
	s.Queues[1].Depth, s.Queues[1].Peak, s.Queues[1].Dropped = 0, 0, 0
	return f
}

func modelWith(width, height int, msgs ...tea.Msg) *Model {
	m := NewModel(nil)
	for _, msg := range append([]tea.Msg{tea.WindowSizeMsg{Width: width, Height: height}}, msgs...) {
		m.Update(msg)
	}
	return m
}

// past is a minute in which events grew, and acks came in every other second.
func past() historyMsg {
	var h historyMsg
	for i := range 60 {
		p := status.Point{Events: float64(1000 * i), Bytes: float64(i % 3 * (1 << 20)), Connections: 10}
		if i%2 == 0 {
			p.Ack = &status.Quantiles{P99: float64(i) / 1000}
		}
		h.points = append(h.points, p)
	}
	return h
}

func frameAt(f *status.Frame) frameMsg { return frameMsg{f, f.Snapshot.Now} }

func TestScreens(t *testing.T) {
	for _, c := range []struct {
		name          string
		width, height int
		msgs          []tea.Msg
	}{
		{"connecting", 80, 24, nil},
		{"quiet", 80, 24, []tea.Msg{frameAt(quiet())}},
		{"busy", 80, 24, []tea.Msg{frameAt(busy())}},
		{"busy-wide", 120, 40, []tea.Msg{past(), frameAt(busy())}},
		{"by-resends", 120, 40, []tea.Msg{frameAt(busy()), tea.KeyPressMsg{Code: 'r', Text: "r"}}},
		{"lost", 80, 24, []tea.Msg{frameAt(busy()), lostMsg{errEnded}, tickMsg(busy().Snapshot.Now.Add(90 * time.Second))}},
		{"small", 30, 8, []tea.Msg{frameAt(busy())}},
	} {
		t.Run(c.name, func(t *testing.T) {
			screen := modelWith(c.width, c.height, c.msgs...).View().Content
			lines := strings.Split(screen, "\n")
			if len(lines) != c.height {
				t.Errorf("%d lines of %d", len(lines), c.height)
			}
			for i, l := range lines {
				if w := ansi.StringWidth(l); w > c.width {
					t.Errorf("line %d has %d columns of %d", i+1, w, c.width)
				}
				lines[i] = strings.TrimRight(ansi.Strip(l), " ")
			}
			got := strings.Join(lines, "\n") + "\n"
			golden := filepath.Join("testdata", c.name+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("screen (go test ./internal/top -update writes it anew):\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	for _, key := range []tea.KeyPressMsg{{Code: 'q', Text: "q"}, {Code: 'c', Mod: tea.ModCtrl}, {Code: tea.KeyEscape}} {
		_, cmd := NewModel(nil).Update(key)
		if cmd == nil {
			t.Errorf("%s does nothing", key)
		} else if _, ok := cmd().(tea.QuitMsg); !ok {
			t.Errorf("%s does not quit", key)
		}
	}
	m := modelWith(80, 24, frameAt(busy()))
	for _, o := range orders {
		m.Update(tea.KeyPressMsg{Code: rune(o.key[0]), Text: o.key})
		if m.order.name != o.name {
			t.Errorf("key %s sorts by %s", o.key, m.order.name)
		}
	}
	// A frame after the loss ends it.
	m.Update(lostMsg{errEnded})
	m.Update(frameAt(busy()))
	if m.lost != nil {
		t.Error("still lost")
	}
}

// TestSendersOfAll: where the frame lists some of the senders only, the first in the
// chosen order are asked for; one request is under way at a time.
func TestSendersOfAll(t *testing.T) {
	var asked []string
	fail := false
	m := NewModel(func(by string, limit int) (*status.SenderList, error) {
		asked = append(asked, fmt.Sprint(by, " ", limit))
		if fail {
			return nil, errors.New("refused")
		}
		return &status.SenderList{By: by, Known: 400, Senders: []status.Sender{{Address: "192.0.2.1-" + by}}}, nil
	})
	m.Update(tea.WindowSizeMsg{Width: 120, Height: 40})
	answer := func(cmd tea.Cmd) tea.Cmd {
		t.Helper()
		if cmd == nil {
			t.Fatalf("nothing is asked for; before %v", asked)
		}
		_, next := m.Update(cmd())
		return next
	}
	requireScreen := func(want string) {
		t.Helper()
		if screen := ansi.Strip(m.View().Content); !strings.Contains(screen, want) {
			t.Errorf("the screen lacks %q:\n%s", want, screen)
		}
	}
	_, first := m.Update(frameAt(busy()))
	requireScreen("of the 40 with most heartbeats")
	if _, cmd := m.Update(frameAt(busy())); cmd != nil {
		t.Error("a second request beside the first")
	}
	m.Update(tea.KeyPressMsg{Code: 'r', Text: "r"})
	next := answer(first) // of the order before
	if next == nil {
		t.Fatal("the order chosen meanwhile is not asked for")
	}
	requireScreen("of the 40 with most heartbeats")
	if answer(next) != nil {
		t.Error("asked once more than needed")
	}
	requireScreen("192.0.2.1-resends")
	requireScreen("and 399 more")
	if want := "[heartbeats_per_second 40 resends 40]"; fmt.Sprint(asked) != want {
		t.Errorf("asked for %v, want %s", asked, want)
	}
	fail = true
	_, cmd := m.Update(frameAt(busy()))
	answer(cmd)
	requireScreen("of the 40 with most heartbeats") // and the screen goes on
	all := busy()
	all.Snapshot.SendersKnown = len(all.Snapshot.Senders)
	if _, cmd := m.Update(frameAt(all)); cmd != nil {
		t.Error("asked although the frame has all of them")
	}
}

func TestNothingSteersTheTerminal(t *testing.T) {
	screen := modelWith(120, 40, frameAt(busy())).View().Content
	if strings.Contains(screen, "\x1b[2J") || !strings.Contains(ansi.Strip(screen), `evil\x1b[2J\nna`) {
		t.Errorf("a name reaches the terminal as it is: %q", screen)
	}
}

// TestWatch follows a stream that ends, cannot be opened and comes again.
func TestWatch(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	frame := "event: history\ndata: []\n\nevent: frame\ndata: {\"snapshot\":{\"pid\":7}}\n\n"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var opened atomic.Int64
	open := func(context.Context) (io.ReadCloser, error) {
		switch opened.Add(1) {
		case 1:
			return nil, errors.New("refused")
		case 2:
			r, w := io.Pipe()
			go func() { fmt.Fprint(w, frame) }() // and then nothing until it is closed
			return r, nil
		default:
			return nil, errors.New("too often")
		}
	}
	var got []string
	histories := 0
	Watch(ctx, io.NopCloser(strings.NewReader(frame+"event: end\ndata: {}\n\n")), open, func(msg tea.Msg) {
		switch msg := msg.(type) {
		case frameMsg:
			got = append(got, fmt.Sprintf("frame %d", msg.frame.Snapshot.PID))
			if len(got) == 4 {
				cancel()
			}
		case historyMsg:
			histories++
		case lostMsg:
			got = append(got, msg.err.Error())
		}
	})
	want := []string{"frame 7", "weir has stopped", "refused", "frame 7"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q, want %q", got, want)
	}
	if histories != 2 {
		t.Errorf("%d histories, want one of each stream", histories)
	}
}

func TestNoFrameOfWeir(t *testing.T) {
	for _, data := range []string{"{}", "[1]", "x"} {
		_, err := read(t.Context(), io.NopCloser(strings.NewReader("event: frame\ndata: "+data+"\n\n")), func(tea.Msg) {})
		if err == nil || !strings.Contains(err.Error(), "not a frame of weir") {
			t.Errorf("%s: %v", data, err)
		}
	}
}
