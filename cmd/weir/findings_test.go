package main

import (
	"testing"

	"weir/internal/doctor"
)

// TestFindings: each finding is news once, and so is its end, although its
// figures change from one check to the next.
func TestFindings(t *testing.T) {
	f := func(check, subject, found string, s doctor.Severity) doctor.Finding {
		return doctor.Finding{Check: check, Subject: subject, Found: found, Severity: s}
	}
	var all findings
	for i, step := range []struct {
		now         []doctor.Finding
		begun, over int
	}{
		{nil, 0, 0},
		{[]doctor.Finding{f("nic", "eth0", "1 dropped", doctor.Note), f("nic", "eth1", "1 dropped", doctor.Note)}, 2, 0},
		{[]doctor.Finding{f("nic", "eth0", "2 dropped", doctor.Note), f("nic", "eth1", "2 dropped", doctor.Note)}, 0, 0},
		{[]doctor.Finding{f("nic", "eth0", "9 overran", doctor.Warning)}, 1, 2},
		{nil, 0, 1},
	} {
		begun, over := all.set(step.now)
		if len(begun) != step.begun || len(over) != step.over || len(all.get()) != len(step.now) {
			t.Errorf("step %d: begun %v, over %v, now %v", i, begun, over, all.get())
		}
	}
}
