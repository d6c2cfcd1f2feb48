package alert

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"weir/internal/status"
)

const (
	// quiet is how long the cause of an alert must be away before it is over;
	// quietAgain is that of one that was on less than again ago, so that what
	// comes and goes fills no log.
	quiet      = 5 * time.Second
	quietAgain = time.Minute
	again      = 2 * time.Minute
	// remind is the pace of log lines while an alert lasts, at least.
	remind = 10 * time.Minute
	// keepEnded is how long an alert that is over stays in the list, maxEnded how
	// many do.
	keepEnded = 10 * time.Minute
	maxEnded  = 50
)

// Evaluator applies the rules to readings and keeps the list. Its methods may be
// called at any time.
type Evaluator struct {
	log *zap.Logger

	mu        sync.Mutex
	last      *Reading
	active    map[key]*lasting
	ended     []status.Alert
	unmatched uint64 // overflows of the reading before that no listener's drops explain
	waits     map[string]waitSamples
}

type key struct{ name, subject string }

// lasting is an alert that is on.
type lasting struct {
	status.Alert
	seen   time.Time // when its cause was last there
	logged time.Time
	quiet  time.Duration
	total  uint64
}

// waitSamples is how the number of connections in CLOSE_WAIT went.
type waitSamples struct {
	at    time.Time
	n     int
	rises int
}

// New returns an Evaluator that logs to log: a line when an alert begins, one
// when it is over, and one each ten minutes in between.
func New(log *zap.Logger) *Evaluator {
	return &Evaluator{log: log, active: map[key]*lasting{}, waits: map[string]waitSamples{}}
}

// Look takes the next reading, about one each second.
func (e *Evaluator) Look(r *Reading) {
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.last
	if was == nil {
		was = r
	}
	for _, c := range e.look(was, r) {
		e.on(c, r.At)
	}
	e.last = r
	for k, a := range e.active {
		if r.At.Sub(a.seen) >= a.quiet {
			e.over(k, a, r.At)
		}
	}
	e.ended = slices.DeleteFunc(e.ended, func(a status.Alert) bool { return r.At.Sub(*a.Until) > keepEnded })
}

// on notes that the cause of an alert is there.
func (e *Evaluator) on(c condition, at time.Time) {
	k := key{c.name, c.subject}
	a := e.active[k]
	if a == nil {
		a = &lasting{quiet: quiet, Alert: status.Alert{Name: c.name, Subject: c.subject, Since: at}}
		for _, before := range e.ended {
			if before.Name == c.name && before.Subject == c.subject && at.Sub(*before.Until) < again {
				a.quiet = quietAgain
			}
		}
		e.active[k] = a
	}
	a.seen = at
	a.total += c.count
	a.Message, a.Mend = c.what, c.mend
	if at.Sub(a.logged) >= max(remind, c.remind) {
		a.logged = at
		if !c.told {
			e.log.Warn("alert", a.fields()...)
		}
	}
}

// over ends an alert.
func (e *Evaluator) over(k key, a *lasting, at time.Time) {
	delete(e.active, k)
	ended := a.seen
	a.Until = &ended
	e.log.Info("alert over", zap.String("alert", a.Name), zap.String("subject", a.Subject),
		zap.Duration("after", a.seen.Sub(a.Since).Round(time.Second)), zap.Uint64("total", a.total))
	e.ended = append(e.ended, a.Alert)
	if len(e.ended) > maxEnded {
		e.ended = slices.Delete(e.ended, 0, len(e.ended)-maxEnded)
	}
}

func (a *lasting) fields() []zap.Field {
	f := []zap.Field{zap.String("alert", a.Name), zap.String("subject", a.Subject), zap.String("what", a.Message)}
	if a.Mend != "" {
		f = append(f, zap.String("mend", a.Mend))
	}
	return f
}

// Alerts lists the alerts that are on, by name and subject, then those that
// ended in the last ten minutes, newest first.
func (e *Evaluator) Alerts() []status.Alert {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]status.Alert, 0, len(e.active)+len(e.ended))
	for _, a := range e.active {
		all = append(all, a.Alert)
	}
	slices.SortFunc(all, func(a, b status.Alert) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Subject, b.Subject))
	})
	for _, a := range slices.Backward(e.ended) {
		all = append(all, a)
	}
	return all
}
