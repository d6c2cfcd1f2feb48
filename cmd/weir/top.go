package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"weir/internal/status"
	"weir/internal/top"
)

func newTopCommand(configPath *string) *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the queues of a running weir live in the terminal",
		Long: `Watch a running weir in the terminal, a frame each second: the queues as bars in
the order of flow with their peaks and drops, rates, latencies, outputs, alerts
and senders. The keys are on the last line; q quits.

The status endpoint's address is taken from the configuration (-c), or from
--address.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !term.IsTerminal(int(os.Stdin.Fd())) || !term.IsTerminal(int(os.Stdout.Fd())) {
				return errors.New("top draws on a terminal, and this is none; weir status prints the same figures once")
			}
			e, err := statusEndpoint(*configPath, address)
			if err != nil {
				return err
			}
			return watch(cmd.Context(), e)
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "host:port of the status endpoint (default: from the configuration)")
	return cmd
}

// watch draws the stream's frames until the operator quits. A weir that does
// not answer at all is an error; one that goes away later is waited for.
func watch(ctx context.Context, e *endpoint) error {
	open := func(ctx context.Context) (io.ReadCloser, error) { return openStream(ctx, e) }
	ctx, cancel := context.WithCancel(ctx)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	first, err := open(ctx)
	if err != nil {
		return err
	}
	rank := func(by string, limit int) (*status.SenderList, error) { return fetchSenders(ctx, e, by, limit) }
	p := tea.NewProgram(top.NewModel(rank), tea.WithContext(ctx))
	reading.Go(func() { top.Watch(ctx, first, open, p.Send) })
	if _, err := p.Run(); err != nil {
		return fmt.Errorf("draw on the terminal: %w", err)
	}
	return nil
}

// openStream opens the stream of a weir. The answer's head has statusTimeout; the
// stream itself goes on until it is closed.
func openStream(ctx context.Context, e *endpoint) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(statusTimeout, cancel)
	r, err := e.get(ctx, "/api/stream")
	late.Stop()
	if err != nil {
		cancel()
		return nil, err
	}
	return streamBody{r.Body, cancel}, nil
}

// streamBody ends its request when it is closed.
type streamBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b streamBody) Close() error {
	b.cancel()
	return b.ReadCloser.Close()
}
