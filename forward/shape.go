package forward

import "encoding/binary"

// shape is what the objects of a stream's first event look like, by their place in
// it. Events of one source mostly have the same keys in the same order, and many
// values of the same type. Where an object's first byte is the expected one, its
// length is known without it: the processor guesses the branch and goes on to the
// next object, where it would otherwise wait for each byte before it knew where the
// next one is. A wrong expectation only costs time.
type shape [32]struct{ key, value guess }

// guess is what an object is taken to be.
type guess struct {
	first  uint16 // its first byte | expected, 0 for none
	length uint16 // of such an object
}

// at is the guess for object i.
func (sh *shape) at(i uint) *guess {
	pair := &sh[i/2%uint(len(sh))]
	if i%2 == 0 {
		return &pair.key
	}
	return &pair.value
}

const (
	expected = 0x100
	// learnFrom is how many bytes must be there for learning to pay.
	learnFrom = 2 << 10
	// minHead is how many bytes eventHead needs to see: the longest beginning of an
	// event that it knows.
	minHead = 16
)

// eventHead returns where the objects of the record begin and how many they are,
// keys and values, for the event at the start of p if it is of the plain form:
// [time, record] or [[time, {}], record], the time an unsigned 32-bit integer or
// an EventTime. It is not ok for others, and where p has less than minHead bytes.
func eventHead(p []byte) (n uint, objects uint64, ok bool) {
	if len(p) < minHead || p[0] != 0x92 {
		return 0, 0, false
	}
	n = 1
	withMeta := p[1] == 0x92
	if withMeta {
		n = 2
	}
	switch p[n] {
	case 0xce:
		n += 5
	case 0xd7:
		if p[n+1] != 0 || binary.BigEndian.Uint32(p[n+6:]) >= 1e9 {
			return 0, 0, false
		}
		n += 10
	default:
		return 0, 0, false
	}
	if withMeta {
		if p[n] != 0x80 {
			return 0, 0, false
		}
		n++
	}
	switch c := p[n]; {
	case c&0xf0 == 0x80:
		return n + 1, 2 * uint64(c&0x0f), true
	case c == 0xde:
		return n + 3, 2 * uint64(binary.BigEndian.Uint16(p[n+1:])), true
	}
	return 0, 0, false
}

// sizeOf returns the length of the object at the start of p and how many objects
// follow that are in it. The length is 0 if p is cut, or no msgpack.
//
//go:noinline
func sizeOf(p []byte) (length uint, objects uint64) {
	head, objects, body, err := objectHead(p)
	if err != nil || head == 0 || body > uint64(len(p)) {
		return 0, 0
	}
	return uint(head) + uint(body), objects
}

// learn expects events like the one at the start of p.
func (sh *shape) learn(p []byte) {
	n, _, ok := eventHead(p)
	if !ok {
		return
	}
	for i := range uint(2 * len(sh)) {
		if n >= uint(len(p)) {
			return
		}
		length, _ := sizeOf(p[n:])
		if length == 0 {
			return
		}
		if c := p[n]; objectLen[c] > 0 {
			*sh.at(i) = guess{uint16(c) | expected, uint16(length)}
		}
		n += length
	}
}

// event returns the length of the event at the start of p if that is plain, whole
// and has fewer containers than may nest, else 0: the others are for the
// streamScanner, which takes any, in pieces, and knows what is wrong with a broken
// one.
func (sh *shape) event(p []byte, maxDepth int) int {
	n, objects, ok := eventHead(p)
	if !ok {
		return 0
	}
	opened := 1
	i := uint(0) // of a key and its value
	for left := objects; left > 0; left -= 2 {
		if n >= uint(len(p)) {
			return 0
		}
		pair := &sh[i%uint(len(sh))]
		key, value := &pair.key, &pair.value
		c := p[n]
		switch {
		case key.first == uint16(c)|expected:
			n += uint(key.length)
		case c-0xa0 < 0x20: // fixstr
			key.first = 0 // it varies; guesses that fail now and then cost more than waiting
			n += 1 + uint(c&0x1f)
		default:
			return sh.anyway(p, n, 2*i, left, opened, maxDepth)
		}
		if n >= uint(len(p)) {
			return 0
		}
		c = p[n]
		i++
		if value.first == uint16(c)|expected {
			n += uint(value.length)
			continue
		}
		value.first = 0
		switch {
		case c-0xa0 < 0x20: // fixstr
			n += 1 + uint(c&0x1f)
		case c == 0xd9: // str 8
			if n++; n == uint(len(p)) {
				return 0
			}
			n += 1 + uint(p[n])
		case c <= 0x7f || c >= 0xe0: // fixint
			n++
		case c <= 0x8f: // fixmap: its pairs are the next ones
			opened++
			left += 2 * uint64(c&0x0f)
			n++
		default:
			if length := uint(objectLen[c]); length > 0 {
				n += length
				continue
			}
			return sh.anyway(p, n, 2*i-1, left-1, opened, maxDepth)
		}
	}
	if n > uint(len(p)) || opened >= maxDepth {
		return 0
	}
	return int(n)
}

// anyway goes on with event at object i, which begins at p[n] and is the first of left,
// where these are not keys and values in turn. It tells objects apart as
// event does for values, written out once more: in a function of its own that would cost
// event as much as it does.
//
//go:noinline
func (sh *shape) anyway(p []byte, n, i uint, left uint64, opened, maxDepth int) int {
	for ; left > 0; i++ {
		if n >= uint(len(p)) {
			return 0
		}
		c := p[n]
		left--
		h := sh.at(i)
		if h.first == uint16(c)|expected {
			n += uint(h.length)
			continue
		}
		h.first = 0
		switch {
		case c-0xa0 < 0x20: // fixstr
			n += 1 + uint(c&0x1f)
		case c == 0xd9: // str 8
			if n++; n == uint(len(p)) {
				return 0
			}
			n += 1 + uint(p[n])
		case c <= 0x7f || c >= 0xe0: // fixint
			n++
		default:
			if length := uint(objectLen[c]); length > 0 {
				n += length
				continue
			}
			// A call, so that what is rare takes no registers from the loop.
			length, objects := sizeOf(p[n:])
			if length == 0 {
				return 0
			}
			if objects > 0 {
				opened++
				left += objects
			}
			n += length
		}
	}
	if n > uint(len(p)) || opened >= maxDepth {
		return 0
	}
	return int(n)
}
