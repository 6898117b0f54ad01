package pccs

// Entries is the number of entries in the memory cache.
func Entries(c *Client) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}
