package output

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"weir/buffer"
)

// flaky fails until it has been tried often enough.
type flaky struct {
	mu       sync.Mutex
	failures int
	tries    int
	events   int
	closed   bool
}

func (f *flaky) Deliver(_ context.Context, b *buffer.Batch) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries++
	if f.tries <= f.failures {
		return nil, errors.New("the far end is away")
	}
	f.events += b.Events
	return []byte("state"), nil
}

func (f *flaky) Close() error { f.closed = true; return nil }

func (f *flaky) delivered() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.events
}

type done chan error

func (d done) Done(err error) { d <- err }

// stored is a buffer with n entries of one event.
func stored(t *testing.T, n int) *buffer.Buffer {
	t.Helper()
	b, err := buffer.Open(t.Context(), buffer.Options{Dir: t.TempDir(), Cursors: []string{"c"}, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(context.Background()) })
	put(t, b, n)
	return b
}

func put(t *testing.T, b *buffer.Buffer, n int) {
	t.Helper()
	for range n {
		d := make(done, 1)
		if err := b.Append(t.Context(), &buffer.Entry{Tag: []byte("t"), Events: 1, Payload: [][]byte{bytes.Repeat([]byte("x"), 10)}}, d); err != nil {
			t.Fatal(err)
		}
		if err := <-d; err != nil {
			t.Fatal(err)
		}
	}
}

func runner(t *testing.T, b *buffer.Buffer, c Config) (r *Runner, wait func()) {
	t.Helper()
	cursor, err := b.Cursor("c")
	if err != nil {
		t.Fatal(err)
	}
	c.Name, c.Cursor, c.Log = "out", cursor, zaptest.NewLogger(t)
	r = NewRunner(c)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(t.Context()) }()
	return r, func() {
		t.Helper()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the runner does not end")
		}
	}
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !check(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still not so: " + what)
		}
	}
}

func quick() Retry {
	return Retry{Periodic: true, Wait: time.Millisecond, MaxTimes: -1, Timeout: time.Hour, SecondaryThreshold: 0.8}
}

func TestRunnerDelivers(t *testing.T) {
	b := stored(t, 3)
	out := &flaky{}
	r, wait := runner(t, b, Config{Output: out, Retry: quick(), FlushInterval: time.Hour})
	eventually(t, "what was there is delivered at once", func() bool { return out.delivered() == 3 })
	put(t, b, 2) // gathers for the flush interval, which Drain ends
	r.Drain()
	wait()
	if out.delivered() != 5 || !out.closed {
		t.Errorf("%d events, closed %v", out.delivered(), out.closed)
	}
	if s := r.Stats(); s.Events != 5 || s.Retries != 0 || b.Stats().Backlog != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestRunnerRetries(t *testing.T) {
	b := stored(t, 3)
	out := &flaky{failures: 4}
	r, wait := runner(t, b, Config{Output: out, Retry: quick()})
	eventually(t, "delivered after retries", func() bool { return r.Stats().Events == 3 })
	if s := r.Stats(); s.Retries != 4 || s.Step != 0 || !s.FirstFailure.IsZero() || s.FlushTime == 0 || s.SlowFlushes != 0 || s.LastError != "" || !s.NextRetry.IsZero() {
		t.Errorf("stats %+v", s)
	}
	r.Drain()
	wait()
}

// TestRunnerGivesUp: the limits end the retries; the events are counted.
func TestRunnerGivesUp(t *testing.T) {
	for name, retry := range map[string]Retry{
		"times":   {Periodic: true, Wait: time.Millisecond, MaxTimes: 2, Timeout: time.Hour},
		"timeout": {Periodic: true, Wait: time.Millisecond, MaxTimes: -1, Timeout: 10 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			b := stored(t, 3)
			out := &flaky{failures: 1 << 30}
			r, wait := runner(t, b, Config{Output: out, Retry: retry})
			eventually(t, "given up", func() bool { return r.Stats().GivenUp == 3 })
			if name == "times" && out.tries != 3 {
				t.Errorf("%d tries, want one and two retries", out.tries)
			}
			if c := b.Stats().Cursors[0]; c.Dropped[CauseRetryLimit] != 3 || c.Remaining.Events != 0 {
				t.Errorf("cursor %+v", c)
			}
			r.Drain()
			wait()
		})
	}
}

func TestRunnerSecondary(t *testing.T) {
	b := stored(t, 3)
	primary, secondary := &flaky{failures: 1 << 30}, &flaky{}
	retry := quick()
	retry.MaxTimes = 5
	r, wait := runner(t, b, Config{Output: primary, Secondary: secondary, Retry: retry})
	eventually(t, "the secondary takes over", func() bool { return r.Stats().ToSecondary == 3 })
	if s := r.Stats(); s.GivenUp != 0 || secondary.delivered() != 3 {
		t.Errorf("stats %+v", s)
	}
	r.Drain()
	wait()
}

// TestRunnerDrainsPastAFailure: a dead output does not hold up the end; its
// events stay.
func TestRunnerDrainsPastAFailure(t *testing.T) {
	b := stored(t, 3)
	retry := quick()
	retry.Wait = time.Hour
	r, wait := runner(t, b, Config{Output: &flaky{failures: 1 << 30}, Retry: retry})
	eventually(t, "the first failure", func() bool { return !r.Stats().NextRetry.IsZero() })
	r.Drain()
	wait()
	if c := b.Stats().Cursors[0]; c.Remaining.Events != 3 {
		t.Errorf("cursor %+v", c)
	}
}

func TestRetryWaits(t *testing.T) {
	r := Retry{Wait: time.Second, Base: 2, MaxInterval: 10 * time.Second}
	for n, want := range []time.Duration{0, 1, 2, 4, 8, 10, 10} {
		if n > 0 && r.wait(n) != want*time.Second {
			t.Errorf("retry %d after %v, want %vs", n, r.wait(n), want)
		}
	}
	r = Retry{Wait: time.Second, Base: 2}
	if d := r.wait(500); d != 24*time.Hour {
		t.Errorf("retry 500 after %v", d)
	}
	r = Retry{Wait: time.Second, Periodic: true, Randomize: true}
	for range 100 {
		if d := r.wait(9); d < 875*time.Millisecond || d > 1125*time.Millisecond {
			t.Errorf("periodic retry after %v", d)
		}
	}
}
