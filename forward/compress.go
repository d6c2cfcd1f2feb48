package forward

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// inflateWindow is the memory that checking a compressed payload takes
	// beside its decompressor, whatever it decompresses to.
	inflateWindow = 64 << 10
	// maxZstdWindow bounds the memory that a zstd frame can ask for.
	maxZstdWindow = 8 << 20
	// zstdPerCPU is how many zstd payloads are decompressed at once, for each
	// CPU. Their windows are beside the memory budget, and decompressing waits for
	// nothing but a CPU: more at once would only take more memory. It is more than
	// one so that a small payload need not wait for all of a large one.
	zstdPerCPU = 2
)

// inflater checks compressed payloads piece by piece; it never holds a whole
// decompressed payload. Its decompressors are pooled.
type inflater struct {
	gzip, zstd sync.Pool
	slots      chan struct{} // of zstd
	waits      *atomic.Uint64
}

func newInflater() inflater {
	return inflater{slots: make(chan struct{}, zstdPerCPU*runtime.GOMAXPROCS(0)), waits: &atomic.Uint64{}}
}

// window is one pooled decompressor with what belongs to it.
type window struct {
	src    bytes.Reader
	gzip   *gzip.Reader
	zstd   *zstd.Decoder
	stream streamScanner
	buf    [inflateWindow]byte
}

// check decompresses payload through the scanner and returns the number of
// events.
func (f *inflater) check(payload []byte, c Compression, l parserLimits) (events int, err error) {
	w, r, err := f.open(payload, c)
	if err != nil {
		return 0, err
	}
	defer f.close(w, c)
	w.stream.reset(l.depth)
	return w.drain(limited{r: r, from: int64(len(payload)), c: c, l: l}, c)
}

// size is how many bytes payload decompresses to; they are read to the end.
func (f *inflater) size(payload []byte, c Compression, l parserLimits) (n int64, err error) {
	w, r, err := f.open(payload, c)
	if err != nil {
		return 0, err
	}
	defer f.close(w, c)
	n, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{&limited{r: r, from: int64(len(payload)), c: c, l: l}}, w.buf[:])
	return n, inflateRefusal(c, err)
}

// text decompresses a payload of which size has told the length.
func (f *inflater) text(payload []byte, c Compression, size int) ([]byte, error) {
	w, r, err := f.open(payload, c)
	if err != nil {
		return nil, err
	}
	defer f.close(w, c)
	p := make([]byte, size)
	_, err = io.ReadFull(r, p)
	return p, inflateRefusal(c, err)
}

// inflateRefusal gives an error of decompressing its reason.
func inflateRefusal(c Compression, err error) error {
	var r *Refusal
	if err == nil || errors.As(err, &r) {
		return err
	}
	return refuse(ReasonDecompress, fmt.Errorf("%v payload: %w", c, err))
}

// limited is the decompressed text of a payload, as far as the limits go.
type limited struct {
	r     io.Reader
	from  int64 // compressed bytes
	total int64
	c     Compression
	l     parserLimits
}

// ratioFrom is how many bytes any payload may decompress to, whatever its ratio.
const ratioFrom = 1 << 20

// Read implements io.Reader.
func (t *limited) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.total += int64(n)
	switch {
	case t.total > t.l.inflated:
		return 0, refuse(ReasonInflated, fmt.Errorf("the %v payload decompresses to more than %d bytes; raise decompression_size_limit, or lower the sender's chunk size", t.c, t.l.inflated))
	case t.total > ratioFrom && t.total/t.l.ratio > t.from:
		return 0, refuse(ReasonRatio, fmt.Errorf("the %v payload of %d bytes decompresses to more than %d times as many; raise decompression_ratio_limit", t.c, t.from, t.l.ratio))
	}
	return n, err
}

// open returns a pooled window and the decompressed payload.
func (f *inflater) open(payload []byte, c Compression) (w *window, r io.Reader, err error) {
	if c == Zstd {
		select {
		case f.slots <- struct{}{}:
		default:
			f.waits.Add(1)
			f.slots <- struct{}{}
		}
	}
	w, _ = f.pool(c).Get().(*window)
	if w == nil {
		w = &window{}
	}
	w.src.Reset(payload)
	switch {
	case c == Zstd && w.zstd == nil:
		w.zstd, err = zstd.NewReader(&w.src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		r = w.zstd
	case c == Zstd:
		err = w.zstd.Reset(&w.src)
		r = w.zstd
	case w.gzip == nil:
		w.gzip, err = gzip.NewReader(&w.src)
		r = w.gzip
	default:
		err = w.gzip.Reset(&w.src)
		r = w.gzip
	}
	if err != nil {
		f.close(w, c)
		return nil, nil, refuse(ReasonDecompress, fmt.Errorf("%v payload: %w", c, err))
	}
	return w, r, nil
}

// close takes a window back.
func (f *inflater) close(w *window, c Compression) {
	w.src.Reset(nil)
	f.pool(c).Put(w)
	if c == Zstd {
		<-f.slots
	}
}

func (f *inflater) pool(c Compression) *sync.Pool {
	if c == Zstd {
		return &f.zstd
	}
	return &f.gzip
}

// drain reads r to its end. The scanner leaves at most a header unconsumed,
// which is carried to the front of the window.
func (w *window) drain(r limited, c Compression) (events int, err error) {
	kept := 0
	for {
		n, err := r.Read(w.buf[kept:])
		have := kept + n
		used, scanErr := w.stream.scanEvents(w.buf[:have], noLimit)
		if scanErr != nil {
			return 0, streamRefusal(scanErr)
		}
		kept = copy(w.buf[:], w.buf[used:have])
		if errors.Is(err, io.EOF) {
			if kept > 0 || !w.stream.atBoundary() {
				return 0, refuse(ReasonBroken, errors.New("the decompressed payload ends in the middle of an event"))
			}
			return w.stream.events, nil
		}
		if err != nil {
			return 0, inflateRefusal(c, err)
		}
	}
}

// String is the name in the protocol's option "compressed".
func (c Compression) String() string {
	switch c {
	case Uncompressed:
		return "text"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("Compression(%d)", uint8(c))
}
