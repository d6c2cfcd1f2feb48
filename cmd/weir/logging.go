package main

import (
	"io"
	"os"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"
)

// newLogger writes to w: readable lines on a terminal, JSON otherwise. The
// level can be changed while it runs.
func newLogger(w io.Writer, level zap.AtomicLevel) *zap.Logger {
	enc := zap.NewProductionEncoderConfig()
	enc.EncodeTime = zapcore.ISO8601TimeEncoder
	enc.EncodeDuration = zapcore.StringDurationEncoder
	enc.TimeKey = "time"
	encoder := zapcore.NewJSONEncoder(enc)
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		enc.EncodeLevel = zapcore.CapitalColorLevelEncoder
		encoder = zapcore.NewConsoleEncoder(enc)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level))
}

// zapLevel maps the levels of fluentd's <system> log_level to zap's.
func zapLevel(fluentd string) zapcore.Level {
	switch fluentd {
	case "trace", "debug":
		return zapcore.DebugLevel
	case "warn":
		return zapcore.WarnLevel
	case "error", "fatal":
		return zapcore.ErrorLevel
	default:
		return zapcore.InfoLevel
	}
}
