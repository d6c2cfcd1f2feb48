package doctor

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weir/internal/config"
)

// store is a directory that weir writes to.
type store struct {
	what string // "buffer of ID" or "output ID"
	path string
	// limit is total_limit_size, 0 for an output.
	limit, chunk int64
	fs           FileSystem
}

// stores are the buffers and then the directories of file outputs.
func (v *view) stores() ([]store, error) {
	var all []store
	var errs []error
	add := func(s store) {
		var err error
		if s.fs, err = v.FileSystem(s.path); err != nil {
			errs = append(errs, err)
			return
		}
		all = append(all, s)
	}
	for _, m := range v.matches() {
		add(store{what: "buffer of " + m.ID, path: m.Buffer.Path, limit: m.Buffer.TotalLimit + m.Buffer.RejectedLimit, chunk: m.Buffer.ChunkLimit})
	}
	for _, m := range v.matches() {
		for _, o := range m.Outputs {
			if o.Type == "file" {
				add(store{what: "output " + o.ID, path: outputDir(o.File.Path)})
			}
		}
	}
	return all, errors.Join(errs...)
}

// outputDir is the part of an output's path before its first placeholder.
func outputDir(path string) string {
	if i := strings.IndexAny(path, "$%*"); i >= 0 {
		path = path[:i]
	}
	return filepath.Dir(path)
}

// fullPart is the free part of a file system under which it counts as full.
const fullPart = 0.05

// diskSpace compares total_limit_size with the space, for all buffers of a file
// system together.
func diskSpace(v *view) ([]Finding, error) {
	stores, err := v.stores()
	var all []Finding
	var done []string
	for _, s := range stores {
		if slices.Contains(done, s.fs.Device) {
			continue
		}
		done = append(done, s.fs.Device)
		var need, used, chunk int64
		var names []string
		for _, o := range stores {
			if o.fs.Device == s.fs.Device {
				need, used, chunk = need+o.limit, used+v.usedBy(o), max(chunk, o.chunk)
				names = append(names, o.what)
			}
		}
		found := fmt.Sprintf("%s free of %s (%s)", size(s.fs.Free), size(s.fs.Total), strings.Join(names, ", "))
		switch {
		case s.fs.ReadOnly:
			all = append(all, finding(Error, s.fs.Path, "the file system is mounted read-only", "weir cannot store, so it acks nothing", "mount -o remount,rw, after a look at why (dmesg)")...)
		case s.fs.Free <= chunk/8:
			all = append(all, finding(Error, s.fs.Path, found, "the disk is full: nothing is stored, so nothing is acked", "free space")...)
		case need > 0 && s.fs.Free+used < need:
			all = append(all, finding(Warning, s.fs.Path, found+fmt.Sprintf("; total_limit_size and rejected_limit_size come to %s", size(need)),
				"the disk is full before the buffer's own limit, so that overflow_action never comes into play and outputs on the same disk fail as well",
				fmt.Sprintf("total_limit_size %dg in <buffer>, or a disk of its own for it", max(1, (s.fs.Free+used)*8/10>>30)))...)
		case float64(s.fs.Free) < fullPart*float64(s.fs.Total):
			all = append(all, finding(Warning, s.fs.Path, found, "outputs stop when it is full, and the buffer fills", "free space, or rotate what outputs have written")...)
		default:
			all = append(all, ok(s.fs.Path, "%s", found)...)
		}
	}
	return all, err
}

// usedBy is the bytes that the buffer has on the disk already.
func (v *view) usedBy(s store) (n int64) {
	if s.limit == 0 {
		return 0
	}
	v.chunks(s.path, func(fi fs.FileInfo) { n += fi.Size() })
	return n
}

// chunks calls each for the files of a buffer directory.
func (v *view) chunks(path string, each func(fs.FileInfo)) {
	path, err := filepath.Abs(path)
	if err != nil {
		return
	}
	entries, err := fs.ReadDir(v.Root, strings.TrimPrefix(path, "/"))
	if err != nil {
		return // not made yet, or another user's
	}
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() {
			each(fi)
		}
	}
}

// inodes: a file system can be full of files.
func inodes(v *view) ([]Finding, error) {
	stores, err := v.stores()
	var all []Finding
	var done []string
	for _, s := range stores {
		if s.fs.Files == 0 || slices.Contains(done, s.fs.Device) {
			continue
		}
		done = append(done, s.fs.Device)
		found := fmt.Sprintf("%d of %d inodes are free", s.fs.FilesFree, s.fs.Files)
		switch {
		case s.fs.FilesFree == 0:
			all = append(all, finding(Error, s.fs.Path, found, "no file can be made, although there is space: no new chunk, no new output file", "remove small files (find -xdev -type f | cut -d/ -f2-4 | sort | uniq -c)")...)
		case float64(s.fs.FilesFree) < fullPart*float64(s.fs.Files):
			all = append(all, finding(Warning, s.fs.Path, found, "without inodes no file can be made, although there is space", "remove small files, or put fewer placeholders into the path of outputs")...)
		default:
			all = append(all, ok(s.fs.Path, "%s", found)...)
		}
	}
	return all, err
}

// fileSystemType: what an ack is worth on it.
func fileSystemType(v *view) ([]Finding, error) {
	stores, err := v.stores()
	var all []Finding
	for _, s := range stores {
		if s.limit == 0 {
			continue
		}
		switch s.fs.Type {
		case "tmpfs", "ramfs":
			all = append(all, finding(Error, s.path, s.fs.Type+": the buffer is in memory", "an ack promises that events survive a power cut; here they do not", "a path on a disk in <buffer>")...)
		case "overlay":
			all = append(all, finding(Warning, s.path, "overlay: the buffer is in a container's own layer", "it goes with the container, and all that was acked and not delivered with it", "a volume for the buffer's path")...)
		case "nfs", "cifs", "fuse", "9p", "ceph":
			all = append(all, finding(Warning, s.path, s.fs.Type+": the buffer is on a network or user-space file system", "each ack waits for the network, and what fdatasync promises is up to the other end", "a path on a local disk in <buffer>")...)
		default:
			all = append(all, ok(s.path, "%s", s.fs.Type)...)
		}
	}
	return all, err
}

// Times of one small commit.
const (
	slowCommit = 20 * time.Millisecond
	longCommit = 100 * time.Millisecond
)

// diskSpeed measures what an ack has to wait for.
func diskSpeed(v *view) ([]Finding, error) {
	stores, err := v.stores()
	var all []Finding
	var done []string
	for _, s := range stores {
		if s.limit == 0 || s.fs.ReadOnly || slices.Contains(done, s.fs.Device) {
			continue
		}
		done = append(done, s.fs.Device)
		p, err := v.Probe(v, s.path)
		if err != nil {
			all = append(all, finding(Note, s.path, "could not be measured: "+oneLine(err), "", "run weir doctor as the user that weir runs as, or as root")...)
			continue
		}
		if p.Direct {
			all = append(all, ok(s.path, "O_DIRECT works")...)
		} else {
			all = append(all, finding(Note, s.path, "O_DIRECT does not work: "+p.DirectError, "weir writes through the page cache instead, which costs more CPU for each byte and is as durable", "ext4 or xfs for the buffer")...)
		}
		w := slices.Sorted(slices.Values(p.Writes))
		if len(w) == 0 {
			continue
		}
		median, worst := w[len(w)/2], w[len(w)-1]
		found := fmt.Sprintf("a write of 4 KiB with fdatasync takes %v, at most %v in %d; %.0f MB/s", median.Round(time.Microsecond), worst.Round(time.Microsecond), len(w), p.Bandwidth/1e6)
		switch {
		case median > slowCommit:
			all = append(all, finding(Warning, s.path, found, "every ack waits for one such write; a sender that sends its next chunk after the ack gets at most that rate", "a faster disk: an SSD, or a controller with a write cache that survives a power cut")...)
		case worst > longCommit:
			all = append(all, finding(Note, s.path, found, "acks stall as long; something else may have used the disk", "measure again; if it stays, give the buffer a disk of its own")...)
		default:
			all = append(all, ok(s.path, "%s", found)...)
		}
	}
	return all, err
}

// steppedFar is a step of the clock that moves events to other files.
const steppedFar = 2 * time.Second

// clockState: times of events, names of files and validity of certificates
// depend on it.
func clockState(v *view) ([]Finding, error) {
	c, err := v.Clock()
	if err != nil {
		return nil, err
	}
	var all []Finding
	if !c.Synchronised {
		all = append(all, finding(Warning, "clock", "not synchronised", "files by time, ages in status and the validity of certificates follow this clock", "timedatectl set-ntp true, or chrony; in a container or virtual machine look at the host")...)
	}
	if c.Stepped.Abs() > steppedFar {
		all = append(all, finding(Warning, "clock", fmt.Sprintf("it was set by %v since %s", c.Stepped.Round(time.Millisecond), c.Since.Format(time.RFC3339)), "files by time may have a gap or hold events twice as long as they should", "let the time service slew the clock, and step it only at boot")...)
	}
	for _, m := range v.matches() {
		var newest time.Time
		v.chunks(m.Buffer.Path, func(fi fs.FileInfo) {
			if fi.ModTime().After(newest) {
				newest = fi.ModTime()
			}
		})
		if ahead := newest.Sub(v.Now); ahead > time.Minute {
			all = append(all, finding(Warning, m.Buffer.Path, fmt.Sprintf("its newest file was written %v from now", ahead.Round(time.Second)), "the clock was set back: ages are wrong until it has caught up", "check the time service")...)
		}
	}
	if all == nil {
		return ok("clock", "synchronised, error at most %v", c.MaxError.Round(time.Millisecond)), nil
	}
	return all, nil
}

// ExpiresSoon is how long before its end a certificate wants to be renewed.
const ExpiresSoon = 14 * 24 * time.Hour

// certificates looks at the files of every <transport tls>.
func certificates(v *view) ([]Finding, error) {
	var all []Finding
	check := func(id string, t *config.TLS) {
		if t == nil {
			return
		}
		for _, path := range []string{t.CertPath, t.CACertPath, t.ClientCAPath} {
			if path != "" {
				all = append(all, v.certificate(path)...)
			}
		}
		if t.Insecure && t.CertPath == "" && t.CACertPath == "" {
			all = append(all, finding(Note, id, "insecure true: weir makes a certificate of its own at each start", "senders cannot tell weir from anybody else", "cert_path and private_key_path")...)
		}
	}
	for _, s := range v.Config.Sources {
		check(s.ID, s.TLS)
	}
	check(v.Config.Monitor.ID, v.Config.Monitor.TLS)
	return all, nil
}

func (v *view) certificate(path string) []Finding {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return finding(Error, path, oneLine(err), "weir cannot start without it", "")
	}
	text, err := v.read(absolute)
	if err != nil {
		return finding(Error, path, oneLine(err), "weir does not start without it", "the right path, readable for weir's user")
	}
	var first *x509.Certificate // the one that expires first
	rest := []byte(text)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return finding(Error, path, oneLine(err), "weir does not start with it", "a certificate in PEM")
		}
		if first == nil || c.NotAfter.Before(first.NotAfter) {
			first = c
		}
	}
	if first == nil {
		return finding(Error, path, "no certificate in it", "weir does not start with it", "a certificate in PEM")
	}
	who := first.Subject.String()
	left := first.NotAfter.Sub(v.Now)
	day := func(d time.Duration) int { return int(d / (24 * time.Hour)) }
	switch {
	case left < 0:
		return finding(Error, path, fmt.Sprintf("%s expired on %s", who, first.NotAfter.Format(time.DateOnly)), "senders that check certificates do not connect", "renew it, then reload weir (SIGHUP)")
	case v.Now.Before(first.NotBefore):
		return finding(Error, path, fmt.Sprintf("%s is valid from %s on", who, first.NotBefore.Format(time.RFC3339)), "senders that check certificates do not connect", "check the clock, or wait")
	case left < ExpiresSoon:
		return finding(Warning, path, fmt.Sprintf("%s expires in %d days, on %s", who, day(left), first.NotAfter.Format(time.DateOnly)), "then senders that check certificates do not connect", "renew it, then reload weir (SIGHUP)")
	}
	return ok(path, "%s is valid for %d days", who, day(left))
}
