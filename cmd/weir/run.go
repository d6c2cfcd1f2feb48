package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weir/forward"
	"weir/internal/certs"
	"weir/internal/config"
	"weir/internal/status"
	"weir/netopt"
)

type runOptions struct {
	configPath     string
	stdout, stderr io.Writer
}

// source is a <source> at work.
type source struct {
	config    *config.Source
	server    *forward.Server
	route     *route
	listeners []*listener
	packets   []net.PacketConn // for UDP heartbeats
	certs     *certs.Store     // nil without TLS
}

// server is the whole of weir at work.
type server struct {
	log     *zap.Logger
	level   zap.AtomicLevel
	started time.Time

	mu     sync.Mutex // guards config, which a reload replaces
	config *config.Config

	health  health
	sampler *sampler
	matches []*match
	routes  map[string]*route // by label
	sources []*source
	http    *status.Server
	status  net.Listener // of http
	path    string       // of the configuration

	statusCerts *certs.Store // nil without TLS

	serving sync.WaitGroup
	failed  chan error // a part that ended by itself

	findings findings
	reloaded chan struct{} // asks watchMachine to look again
}

// heapBallast is memory that nobody touches, so that it takes none of the machine's, but
// the garbage collector counts it: the heap is so small, since the memory of commits is no
// part of it, that to collect each time it has doubled is too often. Messages without acks
// take 1.06 µs of CPU each with it and 1.15 to 1.2 without. GOGC=200 would do the same,
// and let a large heap grow to three times what is live.
const heapBallast = 8 << 20

// run runs weir until a signal or a failure ends it.
func run(ctx context.Context, o runOptions) error {
	c, err := loadConfig(o.configPath)
	if err != nil {
		return err
	}
	ballast := make([]byte, heapBallast)
	defer runtime.KeepAlive(ballast)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)

	s := &server{config: c, level: zap.NewAtomicLevelAt(zapLevel(c.LogLevel)), started: time.Now(), routes: map[string]*route{}, failed: make(chan error, 1), reloaded: make(chan struct{}, 1)}
	s.path = o.configPath
	s.log = newLogger(o.stderr, s.level)
	if s.sampler, err = newSampler(s.log); err != nil {
		return err
	}
	defer s.sampler.kernel.Close()
	for _, w := range c.Warnings {
		s.log.Warn("configuration", zap.String("warning", w))
	}
	for _, path := range orphans(c) {
		s.log.Warn("buffer of a match that is no longer configured: what is in it waits for ever", zap.String("path", path))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.open(ctx, o.stdout); err != nil {
		return errors.Join(err, s.closeMatches(ctx))
	}
	if err := s.listen(ctx); err != nil {
		s.closeSources()
		return errors.Join(err, s.closeMatches(ctx))
	}
	s.sampleOnce(time.Now()) // what is dropped from here on is seen
	s.serve(ctx)
	s.serving.Go(func() { s.watch(ctx) })
	s.serving.Go(func() { s.watchMachine(ctx) })
	s.serving.Go(func() { watchdog(ctx, s.log, func() { s.snapshot() }) })
	notify(s.log, daemon.SdNotifyReady)
	err = s.wait(ctx, signals, o.configPath)
	stopErr := s.stop(ctx, signals)
	cancel()
	s.serving.Wait()
	return errors.Join(err, stopErr)
}

// open opens buffers and outputs.
func (s *server) open(ctx context.Context, stdout io.Writer) error {
	byConfig := map[*config.Match]*match{}
	for _, c := range allMatches(s.config) {
		m, err := openMatch(ctx, c, stdout, s.log)
		if err != nil {
			return err
		}
		s.matches = append(s.matches, m)
		byConfig[c] = m
		st := m.buffer.Stats()
		for _, cur := range st.Cursors {
			if cur.Recovered > 0 {
				s.log.Info("undelivered events found in the buffer", zap.String("buffer", c.Buffer.Path), zap.String("cursor", cur.Name), zap.Uint64("events", cur.Recovered))
			}
		}
	}
	for label, matches := range s.config.Routes {
		router, err := config.NewRouter(matches)
		if err != nil {
			return err
		}
		s.routes[label] = &route{router: router, matches: byConfig, first: matches[0], log: s.log}
	}
	return nil
}

// listen makes all sockets, or none.
func (s *server) listen(ctx context.Context) error {
	inherited := activation.Files(true)
	for _, c := range s.config.Sources {
		src := &source{config: c, route: s.routes[c.Label]}
		s.sources = append(s.sources, src)
		fc := forward.Config{
			Handler: src.route, Log: s.log.With(zap.String("source", c.ID)), Memory: c.MemoryLimit, MaxConnections: c.MaxConnections,
			MaxConnectionsPerClient: c.MaxPerClient, Tag: c.Tag, TagPrefix: c.TagPrefix,
			SourceAddressKey: c.SourceAddressKey, SourceHostnameKey: c.SourceHostnameKey, Healthy: s.health.healthy,
			MessageSizeLimit: c.ChunkSizeLimit, MessageSizeWarn: c.ChunkSizeWarn, DecompressionSizeLimit: c.DecompressionSizeLimit,
			DecompressionRatioLimit: c.DecompressionRatio, MaxDepth: c.NestingLimit, StallTimeout: c.StallTimeout, MinRate: c.MinRate,
			Quarantine: !c.Refuse, QuarantineWhole: !c.SkipInvalid, ProxyNetworks: c.ProxyNetworks,
			HandshakeTimeout: c.HandshakeTimeout, IdleTimeout: c.IdleTimeout, MaxConnectionAge: c.MaxConnectionAge, DenyKeepalive: c.DenyKeepalive,
		}
		fc.Security = security(c.Security)
		var err error
		if src.certs, err = certificates(c.TLS, s.log); err != nil {
			return fmt.Errorf("source %s: %w", c.ID, err)
		}
		if src.certs != nil {
			fc.TLS = src.certs.TLS()
		}
		if src.server, err = forward.NewServer(fc); err != nil {
			return err
		}
		if inherited, err = src.listen(ctx, inherited); err != nil {
			return err
		}
		for _, l := range src.listeners {
			s.logListener(l)
		}
		s.logSplit(src)
	}
	if len(inherited) > 0 {
		return fmt.Errorf("systemd passed the socket %s, and no <source> has its address; make bind and port those of the socket unit", socketAddress(inherited[0]))
	}
	return s.listenStatus(ctx)
}

// certificates makes the store of a <transport tls>, nil without one.
func certificates(c *config.TLS, log *zap.Logger) (*certs.Store, error) {
	if c == nil {
		return nil, nil
	}
	ciphers, err := certs.ParseCiphers(c.Ciphers)
	if err != nil {
		return nil, err
	}
	versions := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}
	return certs.New(certs.Config{
		CertPath: c.CertPath, KeyPath: c.KeyPath, CACertPath: c.CACertPath, CAKeyPath: c.CAKeyPath, SelfSigned: c.Insecure,
		ClientCAPath: c.ClientCAPath, RequireClient: c.ClientCertAuth, Hostname: c.CommonName,
		KeyPassphrase: string(c.KeyPassphrase), CAKeyPassphrase: string(c.CAKeyPassphrase), Ciphers: ciphers,
		MinVersion: versions[c.MinVersion], MaxVersion: versions[c.MaxVersion],
	}, log)
}

// security maps <security> to the server's.
func security(c *config.Security) *forward.Security {
	if c == nil {
		return nil
	}
	s := &forward.Security{SelfHostname: c.SelfHostname, SharedKey: string(c.SharedKey), UserAuth: c.UserAuth,
		Users: map[string]string{}, DenyAnonymous: c.DenyAnonymous}
	for name, password := range c.Users {
		s.Users[name] = string(password)
	}
	for _, cl := range c.Clients {
		s.Clients = append(s.Clients, forward.Client{Network: cl.Network, SharedKey: string(cl.SharedKey), Users: cl.Users})
	}
	return s
}

// listenStatus makes the status endpoint's socket.
func (s *server) listenStatus(ctx context.Context) error {
	m := s.config.Monitor
	address := m.Address()
	l, err := netopt.Listen(ctx, "tcp", address, netopt.Config{})
	if err != nil {
		return fmt.Errorf("status endpoint (monitor_agent): %w", err)
	}
	s.http = status.NewServer(s.snapshot, status.Options{Senders: s.rankSenders, OutputsOf: s.outputsOf, ConfigPath: s.path,
		HideConfig: m.HideConfig, HideRetry: m.HideRetry, FluentdMetrics: m.FluentdMetrics, Username: m.Username, Password: string(m.Password)}, s.log)
	scheme, nl := "http://", net.Listener(l)
	if s.statusCerts, err = certificates(m.TLS, s.log); err != nil {
		return errors.Join(fmt.Errorf("status endpoint (monitor_agent): %w", err), l.Close())
	}
	if s.statusCerts != nil {
		scheme, nl = "https://", tls.NewListener(l, s.statusCerts.TLS())
	}
	s.log.Info("status endpoint", zap.String("url", scheme+l.Addr().String()))
	s.status = nl
	return nil
}

// outputsOf names the outputs of the first match at the top level that takes the
// tag.
func (s *server) outputsOf(tag string) (ids []string) {
	c := s.routes[""].router.Match([]byte(tag))
	if c == nil {
		return nil
	}
	for _, o := range c.Outputs {
		ids = append(ids, o.ID)
	}
	return ids
}

// serve starts everything that works by itself.
func (s *server) serve(ctx context.Context) {
	for _, m := range s.matches {
		run, cancel := context.WithCancel(ctx)
		m.cancel = cancel
		for _, r := range m.runners {
			m.running.Go(func() { s.fail(r.Run(run)) })
		}
	}
	for _, src := range s.sources {
		for _, l := range src.listeners {
			var nl net.Listener = l
			if src.config.Linger >= 0 {
				nl = lingering{l, src.config.Linger}
			}
			s.serving.Go(func() { s.fail(src.server.Serve(nl)) })
		}
		for _, pc := range src.packets {
			s.serving.Go(func() { s.fail(src.server.ServeUDP(pc)) })
		}
	}
	s.serving.Go(func() { s.fail(s.http.Serve(s.status)) })
}

// fail ends weir because a part of it ended with an error.
func (s *server) fail(err error) {
	if err == nil {
		return
	}
	select {
	case s.failed <- err:
	default:
	}
}

// wait acts on signals until one of them, or a failure, ends weir.
func (s *server) wait(ctx context.Context, signals <-chan os.Signal, configPath string) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.failed:
			return err
		case sig := <-signals:
			if sig != syscall.SIGHUP {
				s.log.Info("stopping: no more connections are accepted, what was received is stored and flushed", zap.Stringer("signal", sig))
				return nil
			}
			s.reload(configPath)
			s.examineSoon()
		}
	}
}

// errStoppedAtOnce is the outcome of a second signal.
var errStoppedAtOnce = errors.New("stopped at once by a second signal; what was acked is in the buffer")

// stop drains: what senders have sent is stored and acked, outputs flush, all
// within drain_timeout; a second signal ends it at once.
func (s *server) stop(ctx context.Context, signals <-chan os.Signal) error {
	notify(s.log, daemon.SdNotifyStopping)
	s.mu.Lock()
	limit := s.config.DrainTimeout
	s.mu.Unlock()
	drain, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var second error
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-ended:
				return
			case sig := <-signals:
				if sig != syscall.SIGHUP {
					second = errStoppedAtOnce
					cancel()
					return
				}
			}
		}
	})
	s.shutdownSources(drain)
	s.drainOutputs(drain)
	err := s.closeMatches(ctx)
	if s.http != nil {
		err = errors.Join(err, s.http.Shutdown(drain))
	}
	close(ended)
	watch.Wait()
	if second != nil {
		return second
	}
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	s.log.Info("stopped")
	return nil
}

func (s *server) shutdownSources(ctx context.Context) {
	var wg sync.WaitGroup
	for _, src := range s.sources {
		wg.Go(func() {
			if err := src.server.Shutdown(ctx); err != nil {
				s.log.Warn("not every sender was finished in time; what was not acked will be sent again", zap.String("source", src.config.ID), zap.Error(err))
			}
		})
	}
	wg.Wait()
}

// drainOutputs lets the outputs deliver what is left until ctx ends.
func (s *server) drainOutputs(ctx context.Context) {
	done := make(chan struct{})
	for _, m := range s.matches {
		for _, r := range m.runners {
			r.Drain()
		}
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		for _, m := range s.matches {
			m.running.Wait()
		}
		close(done)
	})
	select {
	case <-done:
	case <-ctx.Done():
	}
	for _, m := range s.matches {
		if m.cancel != nil {
			m.cancel()
		}
	}
	wait.Wait()
	for _, m := range s.matches {
		if st := m.buffer.Stats(); st.Backlog > 0 {
			s.log.Warn("not everything is delivered: the rest stays in the buffer", zap.String("buffer", m.config.Buffer.Path), zap.Int64("bytes", st.Backlog))
		}
	}
}

// closeSources closes what listen made, when weir does not start.
func (s *server) closeSources() {
	for _, src := range s.sources {
		for _, l := range src.listeners {
			l.Close()
		}
		for _, pc := range src.packets {
			pc.Close()
		}
		if src.server != nil {
			src.server.Close()
		}
	}
}

func (s *server) closeMatches(ctx context.Context) error {
	var errs []error
	for _, m := range s.matches {
		errs = append(errs, m.buffer.Close(ctx))
	}
	return errors.Join(errs...)
}

// reload reads the configuration again and applies what can change while weir
// runs; an error leaves everything as it is.
func (s *server) reload(configPath string) {
	notifyReloading(s.log)
	defer notify(s.log, daemon.SdNotifyReady)
	c, err := loadConfig(configPath)
	if err != nil {
		s.log.Error("configuration not reloaded: weir goes on as before", zap.Error(err))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, change := range config.Diff(s.config, c) {
		fields := []zap.Field{zap.String("parameter", change.Path), zap.String("old", change.Old), zap.String("new", change.New)}
		if change.Live {
			s.log.Info("configuration changed", fields...)
		} else {
			s.log.Warn("configuration changed, takes effect after a restart only", fields...)
		}
	}
	s.level.SetLevel(zapLevel(c.LogLevel))
	s.config.DrainTimeout = c.DrainTimeout
	if s.statusCerts != nil {
		if err := s.statusCerts.Reload(); err != nil {
			s.log.Error("certificates of the status endpoint not reloaded: those before stay in use", zap.Error(err))
		}
	}
	if len(c.Sources) != len(s.sources) {
		return
	}
	for i, src := range s.sources {
		if src.certs != nil {
			if err := src.certs.Reload(); err != nil {
				s.log.Error("certificates not reloaded: those before stay in use", zap.Error(err))
			}
		}
		s.relisten(src, c.Sources[i])
	}
	s.config = c
}

// setLinger sets SO_LINGER (socket(7)).
func setLinger(c net.Conn, seconds int) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: int32(seconds)})
	})
}
