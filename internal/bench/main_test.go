package main

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/internal/load"
)

// TestFailuresFail: a case without a figure fails the whole, and so does one that
// nobody knows.
func TestFailuresFail(t *testing.T) {
	common := []string{"-weir", "/nowhere/weir", "-dir", t.TempDir(), "-duration", "100ms", "-rounds", "1"}
	for only, want := range map[string][]string{
		"weir packed at half load": {"2 cases failed", `weir packed: `, "no such file", "half of what is not known"},
		"weir message, no ack":     {"1 cases failed", "no such file"},
		"receipt and output":       {"1 cases failed", "receipt and output: ", "no such file"},
		"message in a bottle":      {"no case has it in its name"},
	} {
		err := run(t.Context(), append(common, "-only", only))
		if err == nil {
			t.Errorf("%s: no error", only)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v; want %q in it", only, err, w)
			}
		}
	}
	if err := run(t.Context(), append(common, "-rounds", "0")); err == nil {
		t.Error("no rounds: no error")
	}
	if err := run(t.Context(), append(common, "-only", "weir packed", "-limit", "0s")); err == nil || !strings.Contains(err.Error(), errTime.Error()) {
		t.Errorf("no time: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, append(common, "-only", "limit")); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("interrupted: %v", err)
	}
}

// TestHalfLoadIsHalf: a receiver that falls behind has not been measured at half load.
func TestHalfLoadIsHalf(t *testing.T) {
	b := &bench{dir: t.TempDir(), duration: 500 * time.Millisecond, rounds: 1, until: time.Now().Add(time.Hour), peers: []peer{selfPeer(t)}}
	half := line{halfName, "fluentd", b.options("packed", 1)}
	half.load.Rate = 1e9
	if r, err := b.halfLoad(t.Context(), half); err == nil || !strings.Contains(err.Error(), "this is no half load") {
		t.Errorf("%+v, %v", r, err)
	}
	half.load.Rate = 1000
	if _, err := b.halfLoad(t.Context(), half); err != nil {
		t.Error(err)
	}
}

// TestCompared: the cases whose ratio counts are measured in turn, and only if both of
// them are wanted.
func TestCompared(t *testing.T) {
	b := &bench{dir: t.TempDir(), duration: 100 * time.Millisecond, rounds: 1, until: time.Now().Add(time.Hour), peers: []peer{selfPeer(t)}}
	lines := []line{{directName, "fluentd", b.options("packed", 1)}, {"another", "nothing", b.options("packed", 1)}, {packedName, "fluentd", b.options("message", 1)}}
	all, err := b.compared(t.Context(), lines)
	if err != nil || len(all) != 2 {
		t.Fatalf("%d cases, %v, want 2", len(all), err)
	}
	for name, reports := range all {
		if len(reports) != turnRounds || !slices.IsSortedFunc(reports, func(x, y *load.Report) int { return cmp.Compare(cost(x), cost(y)) }) {
			t.Errorf("%s: %d reports, want %d by their cost", name, len(reports), turnRounds)
		}
	}
	b.only = packedName
	if all, err := b.compared(t.Context(), lines); all != nil || err != nil {
		t.Errorf("only one is wanted: %v, %v", all, err)
	}
	b.only, b.weir = "", "/nowhere/weir"
	lines[2].kind = "weir"
	if _, err := b.compared(t.Context(), lines); err == nil {
		t.Error("one of them does not start: no error")
	}
}
