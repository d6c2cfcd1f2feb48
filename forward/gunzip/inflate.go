package gunzip

import "encoding/binary"

// quickInput is how many bytes one turn of quick may read.
const quickInput = 24

type step uint8

const (
	inHeader step = iota // before the header of a member
	inBlocks             // before the header of a block
	inStored             // within a stored block
	inCodes              // within a compressed block
)

// inflate decodes until the window is full or the member ends, with which the step
// is inHeader again.
func (r *Reader) inflate() (err error) {
	for r.out <= full && r.step != inHeader && err == nil {
		switch r.step {
		case inBlocks:
			if r.final {
				r.step = inHeader
				break
			}
			err = r.block()
		case inStored:
			err = r.store()
		case inCodes:
			if len(r.in)-r.pos >= quickInput {
				r.pos, err = r.quick(r.in, r.pos)
			} else {
				err = r.careful()
			}
		}
	}
	return err
}

// careful decodes what is left of the input, which is too little for quick: it gives
// quick a copy with zeros behind it, and then looks whether any of them were used.
func (r *Reader) careful() error {
	r.unread()
	var padded [4 * quickInput]byte // quick ends behind the third quarter at the latest
	rest, out := copy(padded[:], r.in[r.pos:]), r.out
	at, err := r.quick(padded[:], 0)
	if used := at - int(r.have>>3); used <= rest {
		r.pos += at // beyond the end if have tells so, which unread takes back
		r.unread()
		return err
	}
	r.out = out
	return errCut
}

// quick decodes symbols from in while there is room for any and quickInput bytes are
// to come, and returns how far it came. Most of the time goes into branches that the
// processor guesses wrong and into waiting for the next entry: so an entry may be two
// literals, a match is copied in large pieces whatever its length, and the next entry
// is looked up as soon as its bits are there, before anything is written or read.
func (r *Reader) quick(in []byte, pos int) (int, error) {
	if pos > len(in)-quickInput {
		return pos, nil
	}
	var err error
	bits, have, out, w := r.bits, r.have, r.out, &r.window
	pos, bits, have = fill(in, pos, bits, have)
	e := r.lit[bits&(1<<litBits-1)]
	for pos <= len(in)-quickInput && out <= full {
		// 56 bits are enough for three entries of the table and to look up the next one,
		// or for two, a length and to look up a distance.
		if e&literal != 0 {
			bits, have = drop(bits, have, e)
			next := r.lit[bits&(1<<litBits-1)]
			binary.LittleEndian.PutUint16(w[out:], uint16(e>>8))
			out += int(e >> countShift & 3)
			e = next
			if e&literal != 0 {
				bits, have = drop(bits, have, e)
				next := r.lit[bits&(1<<litBits-1)]
				binary.LittleEndian.PutUint16(w[out:], uint16(e>>8))
				out += int(e >> countShift & 3)
				e = next
				if e&literal != 0 {
					binary.LittleEndian.PutUint16(w[out:], uint16(e>>8))
					out += int(e >> countShift & 3)
					bits, have = drop(bits, have, e)
					e = r.lit[bits&(1<<litBits-1)]
					pos, bits, have = fill(in, pos, bits, have)
					continue
				}
			}
		}
		if e&exceptional != 0 {
			bits, have = drop(bits, have, e)
			if e&(endOfBlock|invalid) == 0 {
				e = r.lit[uint64(e>>valueShift)+bits&(1<<(e>>kShift&15)-1)]
				if e&(literal|exceptional) != 0 {
					bits, have = drop(bits, have, e)
				}
			}
			if e&literal != 0 {
				w[out] = byte(e >> 8)
				out++
				pos, bits, have = fill(in, pos, bits, have)
				e = r.lit[bits&(1<<litBits-1)]
				continue
			}
			if e&endOfBlock != 0 {
				r.step = inBlocks
				break
			}
			if e&invalid != 0 {
				err = errSymbol
				break
			}
		}
		length := int(e>>valueShift&511) + int(bits>>(e>>kShift&15))&int(e>>maskShift)
		bits, have = drop(bits, have, e)
		e = r.dist[bits&(1<<distBits-1)]
		pos, bits, have = fill(in, pos, bits, have)
		if e&exceptional != 0 {
			bits, have = drop(bits, have, e)
			if e&invalid != 0 {
				err = errSymbol
				break
			}
			e = r.dist[uint64(e>>valueShift)+bits&(1<<(e>>kShift&15)-1)]
		}
		distance := int(e>>valueShift) + int(bits&(1<<(e&63)-1)>>(e>>kShift&15))
		bits, have = drop(bits, have, e)
		if distance > out-r.start {
			err = errDistance
			break
		}
		e = r.lit[bits&(1<<litBits-1)]
		pos, bits, have = fill(in, pos, bits, have)
		from := out - distance
		if distance < 16 || length > 64 {
			r.overlap(out, distance, length)
		} else {
			copy(w[out:out+16], w[from:from+16])
			copy(w[out+16:out+32], w[from+16:from+32])
			if length > 32 {
				copy(w[out+32:out+48], w[from+32:from+48])
				copy(w[out+48:out+64], w[from+48:from+64])
			}
		}
		out += length
	}
	r.bits, r.have, r.out = bits&(1<<(have&63)-1), have, out
	return pos, err
}

// fill makes at least 56 bits, by reading 8 bytes; what they are beyond have is
// right, and read once more.
func fill(in []byte, pos int, bits uint64, have uint) (int, uint64, uint) {
	return pos + int((63-have)>>3), bits | binary.LittleEndian.Uint64(in[pos:])<<(have&63), have | 56
}

// drop consumes the bits of an entry.
func drop(bits uint64, have uint, e uint32) (uint64, uint) {
	return bits >> (e & 63), have - uint(e&63)
}

// overlap copies length bytes from distance before at to at; they may overlap. What is
// copied once can be copied together with what it was copied from.
func (r *Reader) overlap(at, distance, length int) {
	from := at - distance
	for end := at + length; at < end; {
		at += copy(r.window[at:end], r.window[from:at])
	}
}
