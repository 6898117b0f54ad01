package pccs

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/sesame-init/sesame/attest/dcap"
)

// save writes collateral to the disk cache. The time of the TCB info file says when it was fetched.
func (c *Client) save(r dcap.Request, collateral *dcap.Collateral, now time.Time) error {
	path := filepath.Join(c.config.Directory, name(r))
	if err := WriteDir(path, collateral); err != nil {
		return err
	}
	return os.Chtimes(filepath.Join(path, fileTCBInfo), now, now)
}

// load reads an entry from the disk cache. The disk is not trusted more than the network.
func (c *Client) load(r dcap.Request, now time.Time) (entry, error) {
	path := filepath.Join(c.config.Directory, name(r))
	collateral, err := Dir(path).Collateral(context.Background(), r)
	if err != nil {
		return entry{}, err
	}
	info, err := os.Stat(filepath.Join(path, fileTCBInfo))
	if err != nil {
		return entry{}, err
	}
	e, err := c.check(r, collateral)
	if err != nil {
		return entry{}, err
	}
	fetched := info.ModTime()
	if fetched.After(now) {
		fetched = now
	}
	e.refresh = fetched.Add(min(e.expires.Sub(fetched)*2/3, c.config.MaxAge))
	return e, nil
}
