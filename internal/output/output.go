// Package output takes entries from a buffer's cursor onward: to files, to
// standard output, or nowhere.
//
// A Runner reads batches, gives each to an Output, and commits the cursor when
// that has delivered it. What an Output does not take is tried again; a slow or
// dead output holds up nobody but itself.
package output

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"

	"weir/buffer"
)

// Output delivers batches. It is for one goroutine.
type Output interface {
	// Deliver hands on every event of the batch and returns the state to be
	// committed with the cursor; the state given is that of the last commit. After
	// an error nothing of the batch may count as delivered: it will come again.
	Deliver(ctx context.Context, batch *buffer.Batch) (state []byte, err error)
	// Close lets go of what the output holds.
	Close() error
}

// CauseRetryLimit is the cause of events that were given up after retry_timeout
// or retry_max_times.
const CauseRetryLimit = "retry_limit"

// batchBytes is how much of the buffer is delivered at a time.
const batchBytes = 8 << 20

// fullBytes is how much of a batch need not wait for more. Each batch costs a write and
// an fdatasync(2) of its cursor; the commits of what waits stay in memory, 16 MiB at most.
const fullBytes = batchBytes / 4 * 3

// Retry says when a failed delivery is tried again, and when it is given up;
// the names are those of fluentd's <buffer>.
type Retry struct {
	// Periodic tries every Wait; otherwise each wait is Base times the last one.
	Periodic bool
	Wait     time.Duration
	Base     float64
	// MaxInterval bounds a wait, if not 0.
	MaxInterval time.Duration
	// Randomize varies each wait by up to an eighth.
	Randomize bool
	// Timeout since the first failure and MaxTimes of tries end it, unless
	// Forever; MaxTimes is negative for no limit.
	Timeout  time.Duration
	MaxTimes int
	Forever  bool
	// SecondaryThreshold is the share of the limit after which the secondary
	// output is tried.
	SecondaryThreshold float64
}

// wait is the pause before the n-th retry, n from 1.
func (r *Retry) wait(n int) time.Duration {
	w := float64(r.Wait)
	if !r.Periodic {
		w *= math.Pow(max(r.Base, 1), float64(n-1))
	}
	limit := float64(24 * time.Hour)
	if r.MaxInterval > 0 {
		limit = float64(r.MaxInterval)
	}
	w = min(w, limit)
	if r.Randomize {
		w += w * (rand.Float64() - 0.5) / 4
	}
	return time.Duration(w)
}

// over reports whether the share of the limits has passed after n failures.
func (r *Retry) over(n int, since time.Duration, share float64) bool {
	if r.MaxTimes >= 0 && float64(n) > share*float64(r.MaxTimes) {
		return true
	}
	return r.Timeout > 0 && float64(since) >= share*float64(r.Timeout)
}

// Config describes a Runner.
type Config struct {
	Name   string
	Cursor *buffer.Cursor
	Output Output
	// Secondary takes over when the limits of Retry are near; nil for none.
	Secondary Output
	Retry     Retry
	// FlushInterval is how long events may gather between two deliveries.
	FlushInterval time.Duration
	Log           *zap.Logger
}

// Runner moves what a cursor reads to an output.
type Runner struct {
	c     Config
	drain chan struct{}
	once  sync.Once

	mu    sync.Mutex
	stats Stats
}

// Stats is one reading of a Runner's figures; counters count since start.
type Stats struct {
	Events, Bytes, Batches uint64
	// Retries counts failures since start, Step those in a row.
	Retries uint64
	Step    int
	// FirstFailure is when the failures in a row began; zero if there are none.
	FirstFailure time.Time
	// NextRetry is when the next try is due; zero if none is.
	NextRetry time.Time
	// LastError is why the last try failed; empty once one has succeeded.
	LastError string
	// GivenUp counts events dropped by the limits of Retry.
	GivenUp uint64
	// ToSecondary counts events that the secondary output took.
	ToSecondary uint64
	// FlushTime is what successful deliveries have taken; SlowFlushes counts those
	// over slowFlush, SecondaryBatches those of the secondary output.
	FlushTime                     time.Duration
	SlowFlushes, SecondaryBatches uint64
}

// slowFlush is fluentd's default of slow_flush_log_threshold.
const slowFlush = 20 * time.Second

// NewRunner returns a Runner; Run does the work.
func NewRunner(c Config) *Runner {
	c.Log = c.Log.With(zap.String("output", c.Name))
	return &Runner{c: c, drain: make(chan struct{})}
}

// Drain makes Run deliver what is there without waiting and return once nothing
// is left, or the output fails.
func (r *Runner) Drain() { r.once.Do(func() { close(r.drain) }) }

// Stats reads the figures.
func (r *Runner) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

var errDraining = errors.New("draining")

// Run delivers until ctx ends or, after Drain, until nothing is left. It closes
// the outputs. The error is that of a buffer which cannot be read.
func (r *Runner) Run(ctx context.Context) (err error) {
	defer func() {
		err = errors.Join(err, r.c.Output.Close())
		if r.c.Secondary != nil {
			err = errors.Join(err, r.c.Secondary.Close())
		}
	}()
	idle, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-r.drain:
			stop()
		case <-idle.Done():
		}
	}()
	for {
		wait := idle
		if r.draining() {
			if r.c.Cursor.Remaining().Bytes == 0 {
				return nil
			}
			wait = ctx
		}
		batch, err := r.c.Cursor.Next(wait, batchBytes)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, context.Canceled): // Drain
			continue
		case err != nil:
			// The disk may come back; the buffer keeps what cannot be read.
			if err := r.retryRead(ctx, err); err != nil {
				return nil
			}
			continue
		}
		r.readable()
		full := batch.Bytes >= fullBytes
		if err := r.deliver(ctx, batch); err != nil {
			return nil // stays in the buffer
		}
		if !full && !r.gather(idle, r.c.FlushInterval) && ctx.Err() != nil {
			return nil
		}
	}
}

func (r *Runner) draining() bool {
	select {
	case <-r.drain:
		return true
	default:
		return false
	}
}

// pause waits for d, less when draining; it is false if ctx ends.
func (r *Runner) pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.drain:
	case <-ctx.Done():
		return false
	}
	return true
}

// gather waits for d, less when draining or when a full batch waits; it is false
// if ctx ends.
func (r *Runner) gather(ctx context.Context, d time.Duration) bool {
	if d > 0 {
		wait, stop := context.WithTimeout(ctx, d)
		defer stop()
		_ = r.c.Cursor.Gather(wait, fullBytes) // full, or the time is over
	}
	return ctx.Err() == nil
}

// retryRead waits after a failed read of the buffer.
func (r *Runner) retryRead(ctx context.Context, cause error) error {
	n := r.failed(cause)
	r.c.Log.Error("buffer not readable, will be tried again", zap.Error(cause), zap.Int("retry", n))
	return r.backOff(ctx, n)
}

// failed counts a failure and returns how many there are in a row.
func (r *Runner) failed(cause error) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Retries++
	if r.stats.Step == 0 {
		r.stats.FirstFailure = time.Now()
	}
	r.stats.Step++
	r.stats.LastError = cause.Error()
	return r.stats.Step
}

// readable ends the failures of reading, which are not those of delivering.
func (r *Runner) readable() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.recovered()
}

// recovered ends the failures in a row.
func (s *Stats) recovered() { s.Step, s.FirstFailure, s.NextRetry = 0, time.Time{}, time.Time{} }

// backOff waits for the n-th retry; it fails if ctx ends or the runner drains.
func (r *Runner) backOff(ctx context.Context, n int) error {
	d := r.c.Retry.wait(n)
	r.mu.Lock()
	r.stats.NextRetry = time.Now().Add(d)
	r.mu.Unlock()
	if r.draining() || !r.pause(ctx, d) || r.draining() {
		return errDraining
	}
	return nil
}

// deliver tries until the batch is delivered or given up, and commits it. An
// error means that it is neither.
func (r *Runner) deliver(ctx context.Context, batch *buffer.Batch) error {
	var since time.Time // of the first failure
	for {
		out := r.c.Output
		n := r.step()
		second := r.c.Secondary != nil && n > 0 && !r.c.Retry.Forever && r.c.Retry.over(n, time.Since(since), r.c.Retry.SecondaryThreshold)
		if second {
			out = r.c.Secondary
		}
		begin := time.Now()
		state, err := out.Deliver(ctx, batch)
		if err == nil {
			r.flushed(time.Since(begin))
			if second {
				state = r.c.Cursor.State() // the primary's, unchanged
			}
			return r.commit(ctx, batch, state, second)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if n == 0 {
			since = time.Now()
		}
		n = r.failed(err)
		if !r.c.Retry.Forever && r.c.Retry.over(n, time.Since(since), 1) {
			return r.giveUp(ctx, batch, err)
		}
		r.c.Log.Warn("delivery failed, will be tried again", zap.Error(err), zap.Int("retry", n), zap.Int("events", batch.Events), zap.Bool("secondary", second))
		if err := r.backOff(ctx, n); err != nil {
			return err
		}
	}
}

// flushed counts the time of a delivery that succeeded.
func (r *Runner) flushed(took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.FlushTime += took
	if took >= slowFlush {
		r.stats.SlowFlushes++
	}
}

func (r *Runner) step() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats.Step
}

// commit saves the cursor, as often as it takes: the batch is delivered, and
// must not be delivered again.
func (r *Runner) commit(ctx context.Context, batch *buffer.Batch, state []byte, second bool) error {
	for {
		err := r.c.Cursor.Commit(batch, state)
		if err == nil {
			break
		}
		n := r.failed(err)
		r.c.Log.Error("delivery not recorded, will be tried again", zap.Error(err), zap.Int("retry", n))
		if err := r.backOff(ctx, n); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stats.Step > 0 {
		r.c.Log.Info("delivery works again", zap.Int("after_retries", r.stats.Step))
	}
	r.stats.recovered()
	r.stats.LastError = ""
	r.stats.Batches++
	r.stats.Events += uint64(batch.Events)
	r.stats.Bytes += uint64(batch.Bytes)
	if second {
		r.stats.ToSecondary += uint64(batch.Events)
		r.stats.SecondaryBatches++
	}
	return nil
}

// giveUp drops the batch, counted by cause.
func (r *Runner) giveUp(ctx context.Context, batch *buffer.Batch, cause error) error {
	for {
		err := r.c.Cursor.Drop(batch, CauseRetryLimit, r.c.Cursor.State())
		if err == nil {
			break
		}
		n := r.failed(err)
		r.c.Log.Error("cursor not saved, will be tried again", zap.Error(err), zap.Int("retry", n))
		if err := r.backOff(ctx, n); err != nil {
			return err
		}
	}
	r.c.Log.Error("events dropped: the limit of retries is reached", zap.Int("events", batch.Events), zap.NamedError("cause", cause))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.GivenUp += uint64(batch.Events)
	r.stats.recovered()
	return nil
}

// Null is the output that delivers to nobody.
type Null struct{}

// Deliver takes everything.
func (Null) Deliver(context.Context, *buffer.Batch) ([]byte, error) { return nil, nil }

// Close does nothing.
func (Null) Close() error { return nil }

// errorIn adds to an error of an entry which one it is.
func errorIn(e *buffer.Entry, err error) error {
	return fmt.Errorf("stored message of tag %.100q: %w", e.Tag, err)
}
