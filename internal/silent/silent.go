// Package silent is the logger of those who were given none.
package silent

import (
	"io"

	"github.com/sirupsen/logrus"
)

// Logger is a new logger that writes nothing.
func Logger() *logrus.Logger {
	return &logrus.Logger{Out: io.Discard, Formatter: &logrus.TextFormatter{}, Hooks: make(logrus.LevelHooks), Level: logrus.PanicLevel}
}

// Or is the logger itself, or one that writes nothing if it is nil.
func Or(log logrus.FieldLogger) logrus.FieldLogger {
	if log == nil {
		return Logger()
	}
	return log
}
