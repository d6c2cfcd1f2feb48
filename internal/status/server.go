package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"weir/internal/page"
)

// Limits of the HTTP endpoint: it answers small GET requests only.
const (
	headerTimeout  = 5 * time.Second
	requestTimeout = 10 * time.Second
	idleTimeout    = 60 * time.Second
	maxHeaderBytes = 16 << 10
)

// Server answers the status endpoint's requests.
type Server struct {
	snapshot func() *Snapshot
	options  Options
	stream   *stream
	http     *http.Server
	log      *zap.Logger
}

// Options are what a Server has beside its snapshots.
type Options struct {
	// Senders ranks the senders by one of their figures; an unknown one is an
	// error. It must be set.
	Senders func(by string, limit int) (SenderList, error)
}

// NewServer returns a Server that draws every answer from snapshot, which must
// be safe for concurrent use.
func NewServer(snapshot func() *Snapshot, o Options, log *zap.Logger) *Server {
	s := &Server{snapshot: snapshot, options: o, stream: newStream(snapshot, log), log: log}
	s.http = &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          zap.NewStdLog(log),
	}
	return s
}

// Handler returns the routes: the page at /, its /api/stream, /metrics,
// /api/queues.json, /api/plugins.json, /healthz and /readyz.
func (s *Server) Handler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{s.snapshot},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: zap.NewStdLog(s.log)}))
	mux.HandleFunc("GET /api/queues.json", func(w http.ResponseWriter, _ *http.Request) { s.json(w, s.snapshot()) })
	mux.HandleFunc("GET /api/plugins.json", func(w http.ResponseWriter, _ *http.Request) { s.json(w, plugins(s.snapshot())) })
	mux.HandleFunc("GET /api/senders.json", s.sendersJSON)
	mux.Handle("GET /api/stream", s.stream)
	mux.Handle("GET /{$}", page.Handler())
	mux.Handle("GET /page/", page.Handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "weir serves its page at /, /metrics, /api/queues.json, /api/senders.json, /api/stream, /api/plugins.json, /healthz and /readyz (GET) here, not "+r.URL.Path, http.StatusNotFound)
	})
	return mux
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	snap := s.snapshot()
	if !snap.Ready() {
		http.Error(w, strings.Join(snap.Problems, "\n"), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (s *Server) json(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		s.log.Debug("status answer not sent", zap.Error(err))
	}
}

// Serve answers requests on l until Shutdown; it returns nil then.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status endpoint %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown stops the endpoint: streams end at once, other requests have until
// ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stream.stop()
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}
