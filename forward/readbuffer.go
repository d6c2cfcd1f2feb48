package forward

import (
	"context"
	"time"
)

// takeBuffer waits for the memory of a buffer; a session that holds nothing
// harms nobody by waiting. It is false if the server is closed meanwhile.
func (s *session) takeBuffer(ctx context.Context) bool {
	s.busy(time.Now())
	defer s.idle()
	if !s.srv.memory.acquire(ctx, s.want, 0) {
		return false
	}
	s.setBuffer()
	return true
}

// setBuffer takes a buffer whose memory is granted.
func (s *session) setBuffer() {
	s.buf = s.srv.buffers.get(s.want)
	s.largest = 0
}

// giveBuffer gives the buffer and its memory back, and chooses the class of the
// next one by what this one was used for.
func (s *session) giveBuffer() {
	if s.buf == nil {
		return
	}
	size := int64(len(*s.buf))
	s.want = min(class(int64(s.largest)), maxPooled)
	if s.largest == int(size) && size < maxEager {
		s.want = size * bufferStep // one read filled it: more was there
	}
	s.srv.buffers.put(s.buf)
	s.srv.memory.release(size)
	s.buf = nil
	s.r, s.w = 0, 0
}

// maxEager is the largest buffer that is taken only to read more at a time.
const maxEager = 64 << 10

// parkBuffer lets go of memory before a wait: of all if no message has begun,
// else of what a large buffer has too much for the little that came.
func (s *session) parkBuffer() {
	if s.w == s.r {
		s.rest()
		s.giveBuffer()
		return
	}
	have := int64(s.w - s.r)
	size := int64(len(*s.buf))
	small := class(have + 1)
	if small*8 > size {
		return
	}
	b := s.srv.buffers.get(small)
	copy(*b, (*s.buf)[s.r:s.w])
	s.swap(b, size-small)
}

// rest lets go of cleared messages, of which an idle connection keeps one or two.
// One that goes on reading needs as many again as it has had in flight.
func (s *session) rest() {
	if s.fresh != nil {
		s.fresh.next = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resting = true
	if s.fresh != nil {
		s.free = nil
	} else if s.free != nil {
		s.free.next = nil
	}
}

// swap puts b, which holds the unhandled bytes, in place of the buffer and
// gives back surplus bytes of memory.
func (s *session) swap(b *[]byte, surplus int64) {
	have := s.w - s.r
	s.srv.buffers.put(s.buf)
	s.srv.memory.release(surplus)
	s.buf, s.r, s.w = b, 0, have
	s.largest = have
}

// makeRoom sees to it that the buffer can take more bytes: by moving what is
// unhandled to its front, or by a larger one. Growth follows the bytes that
// came, never a length that a header claims.
func (s *session) makeRoom(ctx context.Context) error {
	if s.buf == nil || s.w < len(*s.buf) {
		return nil
	}
	have := s.w - s.r
	size := int64(len(*s.buf))
	if have <= int(size)/2 {
		copy(*s.buf, (*s.buf)[s.r:s.w])
		s.r, s.w = 0, have
		return nil
	}
	larger := size * bufferStep
	if need := int64(s.parser.bodyNeed()) + readAhead; larger > maxPooled && !s.isJSON && need > int64(have) {
		larger = min(larger, need)
	}
	// The old buffer is garbage as soon as its bytes are moved: only the
	// difference is charged.
	asked := time.Now()
	if !s.srv.memory.acquire(ctx, larger-size, s.srv.config.MemoryWait) {
		return s.noMemory(larger - size)
	}
	if !s.begun.IsZero() { // the wait is not the sender's
		s.begun = s.begun.Add(time.Since(asked))
	}
	b := s.srv.buffers.get(larger)
	copy(*b, (*s.buf)[s.r:s.w])
	s.swap(b, 0)
	return nil
}
