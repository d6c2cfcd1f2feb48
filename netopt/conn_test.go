package netopt_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/netopt"
)

// pair is both ends of a connection through a Listener.
func pair(t *testing.T) (client net.Conn, server *netopt.Conn) {
	t.Helper()
	l := listen(t, "tcp", "127.0.0.1:0", netopt.Config{})
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return client, accepted.(*netopt.Conn)
}

// TestConnDescriptor: the descriptor is of use before anybody has waited on the
// connection, and after, and not once it is closed.
func TestConnDescriptor(t *testing.T) {
	for _, waited := range []bool{false, true} {
		client, server := pair(t)
		if waited {
			if err := server.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := server.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var failed error
		if err := raw.Control(func(fd uintptr) { _, failed = unix.Write(int(fd), []byte("hello")) }); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(client, b); err != nil || string(b) != "hello" {
			t.Fatalf("%q, %v", b, err)
		}
		if err := server.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n, err := client.Read(b); n != 0 || err != io.EOF {
			t.Fatalf("%d, %v after CloseWrite", n, err)
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		called := false
		never := func(uintptr) bool { called = true; return true }
		_, readErr := server.Read(b)
		_, writeErr := server.Write(b)
		for what, err := range map[string]error{
			"Close": server.Close(), "Read": readErr, "Write": writeErr, "CloseWrite": server.CloseWrite(),
			"SetDeadline": server.SetDeadline(time.Now()), "SetReadDeadline": server.SetReadDeadline(time.Now()),
			"SetWriteDeadline": server.SetWriteDeadline(time.Now()),
			"Control":          raw.Control(func(fd uintptr) { never(fd) }), "raw Read": raw.Read(never), "raw Write": raw.Write(never),
		} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("waited %v: %s on a closed connection: %v", waited, what, err)
			}
		}
		if called {
			t.Error("a closed descriptor was handed out")
		}
	}
}

// TestConnCloseRace: nobody gets the descriptor after it is closed, when it may be
// another one's.
func TestConnCloseRace(t *testing.T) {
	for range 50 {
		client, server := pair(t)
		raw, err := server.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		want, err := fdInode(server)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for n := range 4 {
			wg.Go(func() {
				for err := error(nil); err == nil; {
					if n == 0 {
						err = server.SetReadDeadline(time.Now().Add(time.Minute))
						continue
					}
					err = raw.Control(func(fd uintptr) {
						var st unix.Stat_t
						if err := unix.Fstat(int(fd), &st); err != nil || st.Ino != want {
							t.Errorf("%v, another descriptor", err)
						}
					})
				}
			})
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if c, err := net.Dial("udp", "127.0.0.1:9"); err == nil { // takes the number
			c.Close()
		}
		wg.Wait()
		client.Close()
	}
}

func fdInode(c *netopt.Conn) (ino uint64, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if ctl := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); ctl != nil {
		return 0, ctl
	}
	return st.Ino, err
}
