package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"weir/forward"
)

// run is one load run.
type run struct {
	o         *Options
	maker     *maker
	templates sync.Pool // of *template, for fleets
	target    forward.SenderConfig
	start     time.Time
	left      atomic.Int64 // chunks still to be sent, if Count bounds them
	connected atomic.Bool  // a connection was made once
	stopped   chan struct{}
	workEnded atomic.Int64 // nanoseconds after start; 0 while work goes on

	sentEvents, sentBytes, sentChunks      atomic.Uint64
	ackedEvents, ackedChunks, resent       atomic.Uint64
	overdue                                atomic.Uint64 // chunks, or connections of a storm, whose time has passed unsent
	connections, connErrors                atomic.Uint64
	heartbeats, heartbeatsLost             atomic.Uint64
	inFlight                               atomic.Int64
	missing                                atomic.Uint64 // events that verify looks for
	ackLatency, connectLatency, beatWaited latency

	mu      sync.Mutex
	lastErr error
	failed  error
	cancel  context.CancelFunc
	ledger  map[uint32]*sender
}

// latency is a histogram of microseconds for many goroutines.
type latency struct {
	mu sync.Mutex
	h  *hdrhistogram.Histogram
}

func (l *latency) observe(d time.Duration) {
	l.mu.Lock()
	_ = l.h.RecordValue(min(max(d.Microseconds(), 1), maxLatency)) // within its range
	l.mu.Unlock()
}

// maxLatency is the longest latency that is told apart, in microseconds.
const maxLatency = 600_000_000

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, maxLatency, 3) }

// Run sends the load until its bounds, o.Stop or ctx end it, and reports. At the end
// of ctx nothing is waited for. An error beside a report says that the load was not
// taken as it should have been: chunks without an ack, lost or repeated events.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	if err := o.checkFiles(); err != nil {
		return nil, err
	}
	id := rand.Uint32()
	m, err := newMaker(&o, id)
	if err != nil {
		return nil, err
	}
	r := &run{o: &o, maker: m, ledger: map[uint32]*sender{}, stopped: make(chan struct{}),
		target: forward.SenderConfig{Address: o.Address, TLS: o.TLS, SharedKey: o.SharedKey, Username: o.Username, Password: o.Password, Hostname: o.Hostname, Timeout: o.AckTimeout}}
	r.ackLatency.h, r.connectLatency.h, r.beatWaited.h = newHistogram(), newHistogram(), newHistogram()
	if o.Count > 0 {
		r.left.Store(int64((o.Count-1)/uint64(o.Events)) + 1)
	}
	ctx, r.cancel = context.WithCancel(ctx)
	defer r.cancel()
	idle, release := context.WithCancel(ctx)
	defer release()
	if err := r.holdIdle(idle); err != nil { // before the clock runs
		return nil, err
	}
	before, err := measure(o.PID)
	if err != nil {
		return nil, err
	}
	work, endWork := context.WithCancel(ctx) // ends when nothing new is sent
	if o.Duration > 0 {
		work, endWork = context.WithTimeout(ctx, o.Duration)
	}
	defer endWork()
	r.start = time.Now()
	var beside sync.WaitGroup
	if o.Progress != nil {
		beside.Go(r.progress)
	}
	sending, giveUp := context.WithCancel(ctx)
	defer giveUp()
	beside.Go(func() {
		select {
		case <-o.Stop: // nil if there is none
			endWork()
		case <-r.stopped:
		}
	})
	beside.Go(func() { r.boundWait(work, giveUp) })
	err = r.generate(sending, work)
	took := time.Since(r.start)
	after, gone := measure(o.PID)
	if err == nil {
		err = r.failed
	}
	if err != nil {
		r.end(&beside)
		return nil, err
	}
	rep := r.report(id, took, before, after)
	if gone != nil {
		rep.Server, gone = nil, fmt.Errorf("after the load: %w", gone)
	}
	if len(o.Verify) > 0 {
		rep.Verify, err = r.verify(ctx)
	}
	r.end(&beside)
	if err == nil {
		err = rep.problem()
	}
	return rep, errors.Join(gone, err)
}

// end ends what runs beside the load.
func (r *run) end(beside *sync.WaitGroup) {
	close(r.stopped)
	beside.Wait()
}

// boundWait gives up what is not acked in time after the last chunk was sent: a
// receiver that has gone would else be waited for without an end. For the same
// reason it gives up a run that only Count bounds when nothing goes on any more.
func (r *run) boundWait(work context.Context, giveUp func()) {
	const looks = 8 // in the time that a run without any progress has
	var stuck <-chan time.Time
	if r.o.Duration == 0 && r.o.Burst == 0 {
		tick := time.NewTicker(max(stuckAfter*r.o.AckTimeout/looks, time.Millisecond))
		defer tick.Stop()
		stuck = tick.C
	}
	progress := func() uint64 {
		if r.o.Ack {
			return r.ackedChunks.Load()
		}
		return r.sentChunks.Load()
	}
	for last, same := progress(), 0; ; {
		select {
		case <-stuck:
			now := progress()
			if same++; now != last || r.inFlight.Load() == 0 { // nothing may be due
				last, same = now, 0
			}
			if same >= looks {
				r.note(fmt.Errorf("given up: nothing was taken for %v", stuckAfter*r.o.AckTimeout))
				giveUp()
				return
			}
			continue
		case <-work.Done():
			r.workEnded.Store(int64(time.Since(r.start)))
		case <-r.stopped:
			return
		}
		break
	}
	t := time.NewTimer(r.o.AckTimeout)
	defer t.Stop()
	select {
	case <-t.C:
		giveUp()
	case <-r.stopped:
	}
}

// stuckAfter is for how many times AckTimeout nothing may be taken.
const stuckAfter = 2

// generate runs the load's shape to its end.
func (r *run) generate(ctx, work context.Context) error {
	switch {
	case r.o.Burst > 0:
		return r.burst(ctx)
	case r.o.Storm > 0:
		r.storm(ctx, work)
		return nil
	case r.o.Senders > 0:
		r.fleet(ctx, work)
		return nil
	}
	var senders sync.WaitGroup
	for i := range r.o.Connections {
		s := r.newSender(uint32(i), r.batch())
		s.t = r.maker.template()
		senders.Go(func() { s.run(ctx, work) })
	}
	senders.Wait()
	return nil
}

// batch is how many messages one write may hold: several where one is small.
func (r *run) batch() int {
	if (r.o.Mode == "message" || r.o.Mode == "json") && r.o.KeepAlive {
		if r.o.Ack {
			return min(r.o.Window, 64)
		}
		return 64
	}
	return 1
}

// settling is how long the receiver has to be done with idle connections.
const settling = 2 * time.Second

// holdIdle opens the idle connections and holds them until ctx ends. It returns
// when the receiver has had time to take them, so that what they cost when they
// come is not counted with what is measured beside them.
func (r *run) holdIdle(ctx context.Context) error {
	for i := range r.o.Idle {
		s, err := forward.Dial(ctx, r.target)
		if err != nil {
			return fmt.Errorf("idle connection %d: %w", i+1, err)
		}
		context.AfterFunc(ctx, func() { s.Close() })
	}
	if r.o.Idle > 0 {
		select {
		case <-time.After(settling):
		case <-ctx.Done():
		}
	}
	return nil
}

// ticket takes the right to send up to n chunks.
func (r *run) ticket(n int) int {
	if r.o.Count == 0 {
		return n
	}
	for {
		left := r.left.Load()
		take := min(int64(n), left)
		if take <= 0 {
			return 0
		}
		if r.left.CompareAndSwap(left, left-take) {
			return int(take)
		}
	}
}

// fail ends the whole run: nothing was ever reached.
func (r *run) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed == nil {
		r.failed = err
	}
	r.cancel()
}

// note counts an error, and keeps the last one.
func (r *run) note(err error) {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, net.ErrClosed) { // this side ended it
		return
	}
	r.connErrors.Add(1)
	r.mu.Lock()
	r.lastErr = err
	r.mu.Unlock()
}

// missed counts what had a time before the end of the work and was never sent, where
// next is the time of the first such and interval that between two. What was due in
// the very last interval is no sign of anything.
func (r *run) missed(next time.Time, interval time.Duration) {
	end := time.Now()
	if at := r.workEnded.Load(); at > 0 {
		end = r.start.Add(time.Duration(at))
	}
	if late := end.Sub(next); interval > 0 && late > 0 {
		r.overdue.Add(uint64(late / interval))
	}
}

// sleep waits until t or the end of ctx.
func sleep(ctx context.Context, t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
