package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// startGrace is how long a receiver may take until it listens.
const startGrace = 20 * time.Second

// server is a process under test.
type server struct {
	cmd     *exec.Cmd
	addr    string
	monitor string // address of weir's monitor_agent, else empty
	dir     string
	ended   chan struct{} // closed when the process has ended
	exit    error         // how, once ended is closed
}

// start runs a receiver and waits until it listens.
func (b *bench) start(ctx context.Context, kind string) (*server, error) {
	dir, err := os.MkdirTemp(b.dir, "run-")
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &server{addr: fmt.Sprintf("127.0.0.1:%d", port), dir: dir, ended: make(chan struct{})}
	if err := b.command(s, kind, port); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.exit = s.cmd.Wait()
		close(s.ended)
	}()
	if err := s.listens(ctx); err != nil {
		said, readErr := os.ReadFile(log.Name())
		if readErr != nil {
			said = []byte(readErr.Error())
		}
		s.stop()
		return nil, fmt.Errorf("%s does not listen: %w\n%s", kind, err, said)
	}
	return s, nil
}

// command sets up what is started: its arguments, and its configuration in the
// server's directory.
func (b *bench) command(s *server, kind string, port int) error {
	if i := slices.IndexFunc(b.peers, func(p peer) bool { return p.kind == kind }); i >= 0 {
		args, err := b.peers[i].arguments(s.dir, port)
		if err != nil {
			return err
		}
		s.cmd = exec.Command(args[0], args[1:]...)
		return nil
	}
	if kind != "weir" && kind != "weir-file" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		s.cmd = exec.Command(self, "limit", kind, s.addr, s.dir)
		return nil
	}
	monitor, err := freePort()
	if err != nil {
		return err
	}
	s.monitor = fmt.Sprintf("127.0.0.1:%d", monitor)
	output := "  @type null\n"
	if kind == "weir-file" {
		output = fileOutput
	}
	conf, err := writeConfig(s.dir, port, monitor, output)
	if err != nil {
		return err
	}
	s.cmd = exec.Command(b.weir, "-c", conf)
	s.cmd.Dir = s.dir
	return nil
}

// listens waits until somebody listens at the server's address.
func (s *server) listens(ctx context.Context) error {
	for deadline := time.Now().Add(startGrace); ; {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ended:
			if s.exit == nil {
				return fmt.Errorf("it ended by itself; its command must become the receiver, by exec")
			}
			return fmt.Errorf("it ended: %w", s.exit)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *server) stop() {
	_ = s.cmd.Process.Kill() // fails if it has ended
	<-s.ended
	_ = os.RemoveAll(s.dir)
}

func writeConfig(dir string, port, monitor int, output string) (string, error) {
	conf := fmt.Sprintf("<source>\n  @type forward\n  bind 127.0.0.1\n  port %d\n</source>\n"+
		"<source>\n  @type monitor_agent\n  bind 127.0.0.1\n  port %d\n</source>\n"+
		"<match **>\n%s  <buffer>\n    path buffer\n  </buffer>\n</match>\n", port, monitor, output)
	name := filepath.Join(dir, "weir.conf")
	return name, os.WriteFile(name, []byte(conf), 0o600)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
