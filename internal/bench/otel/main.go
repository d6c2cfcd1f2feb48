// Command otel runs the OpenTelemetry collector's fluentforward receiver in
// front of a file of protobuf, as a peer for weir's benchmark. It is a module of
// its own, so that the collector never enters weir's.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/open-telemetry/opentelemetry-collector-contrib/receiver/fluentforwardreceiver"
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/receiver"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: otel ADDRESS FILE")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "otel:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, address, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	var marshal plog.ProtoMarshaler
	out, err := consumer.NewLogs(func(_ context.Context, l plog.Logs) error {
		b, err := marshal.MarshalLogs(l)
		if err == nil {
			_, err = f.Write(b)
		}
		return err
	})
	if err != nil {
		return err
	}
	rf := fluentforwardreceiver.NewFactory()
	rc := rf.CreateDefaultConfig().(*fluentforwardreceiver.Config)
	rc.ListenAddress = address
	rec, err := rf.CreateLogs(ctx, receiver.Settings{ID: component.NewID(rf.Type()), TelemetrySettings: componenttest.NewNopTelemetrySettings()}, rc, out)
	if err != nil {
		return err
	}
	if err := rec.Start(ctx, componenttest.NewNopHost()); err != nil {
		return err
	}
	<-ctx.Done()
	return errors.Join(rec.Shutdown(context.Background()), f.Close())
}
