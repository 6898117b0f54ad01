package fuse

import (
	"container/list"
	"sync"
)

// openFiles keeps the files that were read last open, by inode number, so that the kernel need not say when it opens
// and closes one, and so that the host's file descriptors do not run out whatever the readers open.
type openFiles struct {
	open func(inode uint32) (File, error)

	mu      sync.Mutex
	limit   int
	byInode map[uint32]*list.Element
	order   list.List // of *openFile, the latest first
}

// openFile is in use by its users, and open until it has none and has left openFiles.
type openFile struct {
	inode uint32
	once  sync.Once
	file  File
	err   error

	users   int  // with openFiles.mu held
	dropped bool // likewise
}

// use calls f with the open file, or returns why it cannot be opened.
func (o *openFiles) use(inode uint32, f func(File) error) error {
	entry := o.acquire(inode)
	defer o.release(entry)
	entry.once.Do(func() { entry.file, entry.err = o.open(inode) })
	if entry.err != nil {
		return entry.err
	}
	return f(entry.file)
}

func (o *openFiles) acquire(inode uint32) *openFile {
	o.mu.Lock()
	defer o.mu.Unlock()
	e := o.byInode[inode]
	if e == nil {
		e = o.order.PushFront(&openFile{inode: inode})
		o.byInode[inode] = e
		if len(o.byInode) > o.limit {
			o.drop(o.order.Back().Value.(*openFile))
		}
	} else {
		o.order.MoveToFront(e)
	}
	entry := e.Value.(*openFile)
	entry.users++
	return entry
}

func (o *openFiles) release(entry *openFile) {
	o.mu.Lock()
	defer o.mu.Unlock()
	entry.users--
	if entry.dropped {
		entry.close()
	} else if entry.err != nil {
		o.drop(entry) // the next reader tries again
	}
}

// drop forgets an open file, with mu held.
func (o *openFiles) drop(entry *openFile) {
	o.order.Remove(o.byInode[entry.inode])
	delete(o.byInode, entry.inode)
	entry.dropped = true
	entry.close()
}

// close closes the file of the last user.
func (e *openFile) close() {
	if e.users == 0 && e.file != nil {
		_ = e.file.Close() // nothing was written
	}
}

// dropAll closes what is not in use; the rest is closed by its users.
func (o *openFiles) dropAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.order.Len() > 0 {
		o.drop(o.order.Front().Value.(*openFile))
	}
}
