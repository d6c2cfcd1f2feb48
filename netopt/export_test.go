package netopt

// Watching reports whether the watchdog will look again.
func (l *Listener) Watching() bool { return l.watching.Load() }
