package main

import (
	"context"
	"maps"
	"slices"
)

// A service is one of the services that turn evidence into secrets. The config that the demo writes for init names
// all of them, and init uses the one that the word "backend" chooses: the same image boots with another service
// when that word is changed.
type service interface {
	// prepare makes what init's config must name before the inference instance is built: addresses, certificates.
	// It returns files for the instance, by their path in it, and may add to the demo's environment.
	prepare(ctx context.Context) (files map[string]string, err error)
	// block is this service's block in init's config, and its key there.
	block() (key string, block any, err error)
	// admit names the inference instance, which is built now, in the service's policy, and puts the secrets in.
	admit(ctx context.Context) (detail string, err error)
	// start starts the service and returns its address once it is ready; stop stops it, running or not.
	start(ctx context.Context) (address string, err error)
	stop()
	// refusal waits until the service has refused a peer and returns its reason.
	refusal(ctx context.Context) (string, error)
	// tamperings are those whose change or reason is this service's own.
	tamperings() map[string][]tampering
}

// newServices are all services that the demo knows, by the word in init's config that chooses them. Only the
// chosen one is admitted to and started.
func newServices(d *demo) map[string]service {
	return map[string]service{
		"grpc-ratls": &broker{demo: d, instance: "broker"},
		"aecs":       newAECS(d),
		"maa":        &azure{demo: d},
	}
}

// An occlumService is a service that one of Occlum's own inits speaks with, so that its config has a shape for it.
type occlumService interface {
	// occlumShape is init's config in Occlum's own shape.
	occlumShape() (map[string]any, error)
}

func serviceWords() []string {
	return slices.Sorted(maps.Keys(newServices(nil)))
}

// choose takes the value of "backend" in init's config.
func (d *demo) choose(backend string) bool {
	d.backend, d.services = backend, newServices(d)
	d.service = d.services[backend]
	return d.service != nil
}

// secretFiles are the files with the secrets that every service holds, by the secrets' names.
func (d *demo) secretFiles() map[string]string {
	return map[string]string{"image_key": d.path("image.key"), "model_key": d.path("model.key"), "ssl_config": d.path("ssl.cfg")}
}
