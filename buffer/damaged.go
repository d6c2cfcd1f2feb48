package buffer

import (
	"path/filepath"
	"slices"
	"strings"

	"go.uber.org/zap"
)

// DamagedLimit is the most bytes of chunks that are kept as .damaged; beyond it
// the oldest go, counted in Stats.DroppedDamaged. The newest one stays, however
// large it is.
const DamagedLimit = 1 << 30

// trimDamaged keeps the chunks that were moved aside within the limit. What
// outputs could read of them is delivered, so that nothing but evidence goes.
func (b *Buffer) trimDamaged(limit int64) {
	names, err := b.fs.ReadDir(b.opt.Dir)
	if err != nil {
		b.log.Error("damaged chunks not counted", zap.Error(err))
		return
	}
	var total int64
	var dropped uint64
	kept := 0
	slices.Reverse(names) // the newest first
	for _, name := range names {
		if _, ok := chunkSeq(strings.TrimSuffix(name, damagedSuffix)); !ok || !strings.HasSuffix(name, damagedSuffix) {
			continue
		}
		path := filepath.Join(b.opt.Dir, name)
		size, err := b.sizeOf(path)
		if err == nil && (kept == 0 || total+size <= limit) {
			total += size
			kept++
			continue
		}
		if err == nil {
			err = b.fs.Remove(path)
		}
		if err != nil {
			b.log.Error("damaged chunk not removed", zap.String("file", path), zap.Error(err))
			continue
		}
		dropped++
		b.log.Warn("damaged chunk removed: those that were kept have reached their limit; weir buffer replay takes them up again", zap.String("file", path), zap.Int64("limit_bytes", limit))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stats.damagedBytes, b.stats.damagedChunks = total, kept
	b.stats.droppedDamaged += dropped
}

func (b *Buffer) sizeOf(path string) (int64, error) {
	f, err := b.fs.Open(path, Cached)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Size()
}
