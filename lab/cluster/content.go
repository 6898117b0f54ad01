package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// objects reads what kubectl makes of a stream of manifests, by kind and name. The images have lost registry and tag.
func (e *suite) objects(ctx context.Context, manifests string) (map[string]any, error) {
	text, err := e.kubectl(ctx, manifests, "create", "--dry-run=client", "-o", "json", "-f", "-")
	if err != nil {
		return nil, err
	}
	return readObjects(text, e.registry+"/", ":"+e.tag("first"))
}

// readObjects reads objects that follow each other, and cuts prefix and suffix off their images.
func readObjects(text, prefix, suffix string) (map[string]any, error) {
	all := make(map[string]any)
	for d := json.NewDecoder(strings.NewReader(text)); ; {
		var o map[string]any
		switch err := d.Decode(&o); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, err
		}
		items, isList := o["items"].([]any)
		if !isList {
			items = []any{o}
		}
		for _, item := range items {
			cutImages(item, prefix, suffix)
			object, _ := item.(map[string]any)
			metadata, _ := object["metadata"].(map[string]any)
			all[fmt.Sprint(object["kind"], " ", metadata["name"])] = item
		}
	}
}

// cutImages leaves the bare names of images, and no word on when to pull them.
func cutImages(at any, prefix, suffix string) {
	switch at := at.(type) {
	case []any:
		for _, v := range at {
			cutImages(v, prefix, suffix)
		}
	case map[string]any:
		delete(at, "imagePullPolicy")
		for key, v := range at {
			if image, ok := v.(string); ok && key == "image" {
				at[key] = strings.TrimSuffix(strings.TrimPrefix(image, prefix), suffix)
			}
			cutImages(v, prefix, suffix)
		}
	}
}

// sameObjects fails if two sets differ; chartAlone is the object that only the chart has.
func sameObjects(manifests, chart map[string]any, chartAlone string) error {
	var errs []error
	for name, o := range manifests {
		if !reflect.DeepEqual(o, chart[name]) {
			a, _ := json.Marshal(o)
			b, _ := json.Marshal(chart[name])
			errs = append(errs, fmt.Errorf("%s is in the manifests\n%s\nand in the chart\n%s", name, a, b))
		}
	}
	for name := range chart {
		if manifests[name] == nil && name != chartAlone {
			errs = append(errs, fmt.Errorf("%s is in the chart alone", name))
		}
	}
	return errors.Join(errs...)
}
