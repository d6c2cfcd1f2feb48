package status

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weir/internal/page"
)

// Limits of the HTTP endpoint: it answers small GET requests only.
const (
	headerTimeout  = 5 * time.Second
	requestTimeout = 10 * time.Second
	idleTimeout    = 60 * time.Second
	maxHeaderBytes = 16 << 10
	// sendBuffer bounds what the kernel keeps for a client that does not read, in
	// bytes; it doubles it for its own needs (socket(7)).
	sendBuffer = 32 << 10
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
	// OutputsOf names the outputs that get messages of a tag, for
	// plugins.json?tag=.
	OutputsOf func(tag string) []string
	// ConfigPath is shown in config.json; empty for the embedded configuration.
	ConfigPath string
	// HideConfig and HideRetry leave these out of plugins.json unless a request
	// asks for them.
	HideConfig, HideRetry bool
	// FluentdMetrics adds the names of fluent-plugin-prometheus to the metrics.
	FluentdMetrics bool
	// Username and Password ask for basic authentication on all paths but
	// /healthz and /readyz, unless Username is empty.
	Username, Password string
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
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			boundSendBuffer(c)
			return ctx
		},
		ErrorLog: zap.NewStdLog(log),
	}
	return s
}

// Handler returns the routes: the page at /, its /api/stream, /metrics,
// /api/queues.json, /api/plugins.json, /healthz and /readyz.
func (s *Server) Handler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{s.snapshot, s.options.FluentdMetrics},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: zap.NewStdLog(s.log)}))
	mux.HandleFunc("GET /api/queues.json", func(w http.ResponseWriter, _ *http.Request) { s.json(w, s.snapshot()) })
	for _, path := range []string{"/api/plugins.json", "/api/plugins", "/api/plugins.ltsv"} {
		mux.HandleFunc("GET "+path, s.plugins)
	}
	for _, path := range []string{"/api/config.json", "/api/config", "/api/config.ltsv"} {
		mux.HandleFunc("GET "+path, s.config)
	}
	mux.HandleFunc("GET /api/senders.json", s.sendersJSON)
	mux.Handle("GET /api/stream", s.stream)
	mux.Handle("GET /{$}", page.Handler())
	mux.Handle("GET /page/", page.Handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "weir serves its page at /, /metrics, /api/queues.json, /api/senders.json, /api/stream, /api/plugins.json, /api/config.json, /healthz and /readyz (GET) here, not "+r.URL.Path, http.StatusNotFound)
	})
	return s.authenticated(mux)
}

// authenticated asks for the user name and the password, if there are any. Health
// checks stay open: they tell only whether weir works.
func (s *Server) authenticated(next http.Handler) http.Handler {
	if s.options.Username == "" {
		return next
	}
	user, password := sha256.Sum256([]byte(s.options.Username)), sha256.Sum256([]byte(s.options.Password))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" && r.URL.Path != "/readyz" {
			u, p, _ := r.BasicAuth()
			gotUser, gotPassword := sha256.Sum256([]byte(u)), sha256.Sum256([]byte(p))
			if subtle.ConstantTimeCompare(user[:], gotUser[:])&subtle.ConstantTimeCompare(password[:], gotPassword[:]) != 1 {
				w.Header().Set("WWW-Authenticate", `Basic realm="weir", charset="UTF-8"`)
				http.Error(w, "user name and password are those of the monitor_agent source", http.StatusUnauthorized)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
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
	w.Header().Set("X-Content-Type-Options", "nosniff")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		s.log.Debug("status answer not sent", zap.Error(err))
	}
}

// boundSendBuffer sets SO_SNDBUF (socket(7)): the kernel would else grow it to
// megabytes, and a stream's client that does not read be found out that much later.
func boundSendBuffer(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := sc.SyscallConn(); err == nil {
		// Where it fails, the connection works as well, with more memory.
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer) })
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
