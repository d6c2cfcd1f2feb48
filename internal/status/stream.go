package status

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Limits of the stream. Its cost does not grow with the number of clients
// beyond writing the same bytes to each, and is nothing while there are none.
const (
	streamEvery   = time.Second // between two frames
	streamClients = 32          // more are answered 503
	streamWrite   = 5 * time.Second
	streamIdle    = 10 * time.Second // then a comment keeps proxies from closing
	streamHistory = 300              // points that a new client gets
)

// stream sends Frames to its clients as server-sent events: first "history"
// (an array of Points, oldest first), then a "frame" each second, and "end" when
// the server stops. All clients share one snapshot a second, which is taken
// only while there are clients.
type stream struct {
	snapshot func() *Snapshot
	log      *zap.Logger
	stopped  chan struct{} // closed by stop

	mu       sync.Mutex
	ended    bool
	running  bool // the sampling
	clients  map[*streamClient]struct{}
	history  []Point
	previous *Snapshot
	frame    []byte // the last one, as an event; nil when nobody watches
	sampling sync.WaitGroup
}

// streamClient is one reader. Its channel holds the newest frame only: a slow
// client misses frames, and is dropped if a single write takes too long.
type streamClient struct{ frames chan []byte }

func newStream(snapshot func() *Snapshot, log *zap.Logger) *stream {
	return &stream{snapshot: snapshot, log: log, stopped: make(chan struct{}), clients: map[*streamClient]struct{}{}}
}

// stop ends all clients and waits for the sampling to end.
func (s *stream) stop() {
	s.mu.Lock()
	if !s.ended {
		s.ended = true
		close(s.stopped)
	}
	s.mu.Unlock()
	s.sampling.Wait()
}

// join adds a client, and starts the sampling with the first. The client gets
// first, at once: what was, and the newest frame if it is fresh.
func (s *stream) join() (c *streamClient, first []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.clients) >= streamClients {
		return nil, nil, false
	}
	c = &streamClient{frames: make(chan []byte, 1)}
	s.clients[c] = struct{}{}
	history := s.history
	if history == nil {
		history = []Point{}
	}
	b, err := json.Marshal(history)
	if err != nil { // a figure that is no number: cannot be
		s.log.Error("history of the stream not encoded", zap.Error(err))
		b = []byte("[]")
	}
	first = append(event("history", b), s.frame...)
	if !s.running {
		s.running = true
		s.sampling.Go(s.sample)
	}
	return c, first, true
}

func (s *stream) leave(c *streamClient) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, c)
}

// sample takes a snapshot each second until nobody watches any more.
func (s *stream) sample() {
	tick := time.NewTicker(streamEvery)
	defer tick.Stop()
	for s.next() {
		select {
		case <-tick.C:
		case <-s.stopped:
			return
		}
	}
}

// next takes one snapshot and hands it to all clients; it reports false when
// there are none.
func (s *stream) next() bool {
	now := s.snapshot()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.clients) == 0 {
		// Who joins from here on starts another sampling: rates over the time
		// between would be no rates of a second.
		s.previous, s.frame, s.running = nil, nil, false
		return false
	}
	f := Frame{Snapshot: now}
	if s.previous != nil {
		f.Point = newPoint(s.previous, now)
	}
	s.previous = now
	if f.Point != nil {
		s.history = append(s.history, *f.Point)
		if extra := len(s.history) - streamHistory; extra > 0 {
			s.history = append(s.history[:0], s.history[extra:]...)
		}
	}
	b, err := json.Marshal(f)
	if err != nil {
		s.log.Error("frame of the stream not encoded", zap.Error(err))
		return true
	}
	s.frame = event("frame", b)
	for c := range s.clients {
		select {
		case <-c.frames: // it has not taken the one before
		default:
		}
		c.frames <- s.frame
	}
	return true
}

// ServeHTTP streams until the client leaves, is too slow, or the server stops.
func (s *stream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, first, ok := s.join()
	if !ok {
		w.Header().Set("Retry-After", "5")
		http.Error(w, fmt.Sprintf("weir streams to at most %d clients at once, and not while it stops; /api/queues.json has the same figures", streamClients), http.StatusServiceUnavailable)
		return
	}
	defer s.leave(c)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Accel-Buffering", "no") // nginx would hold the events back
	rc := http.NewResponseController(w)
	// The server's limits are for requests that end.
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		s.log.Debug("stream without control of its deadlines", zap.Error(err))
	}
	send := func(b []byte) bool {
		if err := rc.SetWriteDeadline(time.Now().Add(streamWrite)); err != nil {
			return false
		}
		if _, err := w.Write(b); err != nil {
			return false
		}
		return rc.Flush() == nil
	}
	idle := time.NewTimer(streamIdle)
	defer idle.Stop()
	for b := append([]byte("retry: 2000\n\n"), first...); send(b); idle.Reset(streamIdle) {
		select {
		case b = <-c.frames:
		case <-idle.C:
			b = []byte(": nothing new\n\n")
		case <-s.stopped:
			send(event("end", []byte("{}")))
			return
		case <-r.Context().Done():
			return
		}
	}
}
