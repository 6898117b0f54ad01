// Command tensorflow_model_server takes the place of TensorFlow Serving's program of the same name, for demo and tests
// only. It takes these flags of the original, with their defaults and meaning; any other is an error:
//
//	--port=8500                 TCP port of the gRPC API; here 0 means a free one
//	--model_name=default        name that requests use
//	--model_base_path=PATH      folder of version folders; the highest number is served
//	--ssl_config_file=FILE      SSLConfig text proto; without it the server speaks plaintext
//
// and one of its own:
//
//	--listen_address=0.0.0.0    IP address to listen on
//
// A version folder holds model.safetensors, made by the makemodel command beside this one. Package standin says what
// is answered and how. Once it serves it logs "Running gRPC ModelServer at ADDRESS:PORT ..."; SIGTERM and SIGINT let
// requests under way finish for up to ten seconds. Exit codes: 0 stopped by a signal, 1 failed, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/sesame-init/sesame/lab/standin"
)

// grace is how long a stopping server waits for requests under way.
const grace = 10 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

func run(ctx context.Context, args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("tensorflow_model_server", flag.ContinueOnError)
	flags.SetOutput(stderr)
	port := flags.Uint("port", 8500, "TCP `port` to listen on for gRPC API; 0 is a free one")
	name := flags.String("model_name", "default", "`name` of model")
	base := flags.String("model_base_path", "", "`folder` whose version folders hold "+standin.FileName+" (required)")
	ssl := flags.String("ssl_config_file", "",
		"if not empty, `file` with an SSLConfig text proto to set up a secure gRPC channel")
	address := flags.String("listen_address", "0.0.0.0", "IP `address` to listen on; not a flag of TensorFlow Serving")
	flags.Usage = func() {
		fmt.Fprintln(stderr, "A stand-in for TensorFlow Serving, for demo and tests only.")
		fmt.Fprintln(stderr, "usage: tensorflow_model_server [flags]")
		flags.PrintDefaults()
	}
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "unknown argument: %s\n", flags.Arg(0))
		return 2
	case *base == "" || *port > 65535:
		fmt.Fprintln(stderr, "--model_base_path is required, --port is at most 65535")
		return 2
	}
	logger := log.New(stderr, "", log.LstdFlags|log.Lmicroseconds)
	listen := net.JoinHostPort(*address, strconv.Itoa(int(*port)))
	if err := serve(ctx, logger, *name, *base, *ssl, listen); err != nil {
		logger.Print("Failed to start server. Error: ", err)
		return 1
	}
	return 0
}

func serve(ctx context.Context, logger *log.Logger, name, base, ssl, listen string) error {
	start := time.Now()
	model, err := standin.Load(name, base)
	if err != nil {
		return err
	}
	logger.Printf("Successfully loaded servable version {name: %s version: %d}: %d bytes of weights in %v",
		model.Name, model.Version, model.Network.WeightBytes(), time.Since(start).Round(time.Millisecond))
	var options []grpc.ServerOption
	if ssl != "" {
		creds, err := standin.Credentials(ssl)
		if err != nil {
			return err
		}
		options = append(options, grpc.Creds(creds))
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := standin.NewServer(model, options...)
	logger.Printf("Running gRPC ModelServer at %s ...", listener.Addr())

	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		force := time.AfterFunc(grace, server.Stop)
		defer force.Stop()
		server.GracefulStop()
	})
	err = server.Serve(listener)
	if !stop() {
		<-stopped
	}
	return err
}
