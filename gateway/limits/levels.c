/* What is left of every limit, in a file that all processes of a host map: the form in C of levels.py, which says what it is for and what
 * each function does. Taken in its place where it is compiled.
 *
 *     Header     the lock, and how much room there is
 *     Process[]  one slot for each attached process: a lock that it holds as long as it lives
 *     Account[]  a hash table by the digest of the limit's id
 *     Held[]     one record for each reservation that is not settled, so that those of a killed process can be given back
 *
 * One lock guards everything but the slots' own: a decision takes less time than a finer lock would save. Both kinds are robust mutexes of
 * POSIX: the kernel marks those that a dying thread holds, and the next who asks is told. No lock is held while Python runs.
 */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC 0x31736c6576656c67ULL /* "glevels1" */
#define PROCESSES 256
#define ACCOUNTS (1u << 18)
#define HELD (1u << 18)
#define MOST_AT_ONCE 4
#define NONE (-1)
#define HEADER_BYTES 256

enum { FREE_SLOT, RUNNING_SLOT };
enum { REQUESTS, TOKENS, CONCURRENCY, BUDGET };

typedef struct {
    uint64_t magic, epoch;
    pthread_mutex_t lock;
    uint32_t accounts_used, held_free, held_fresh, held_used;
} Header;

typedef struct {
    pthread_mutex_t alive;
    int32_t state, pid;
    uint32_t held; /* first of its reservations, 0 = none */
    uint32_t unused[3];
} Process;

typedef struct {
    uint64_t id[2];
    double updated_s;
    int64_t rpm, tpm, concurrency, budget_pusd; /* NONE = no such limit */
    double requests_left, tokens_left;          /* below zero: owed */
    int64_t running, reserved_pusd, spent_pusd;
    double window_end_s; /* of the budget; 0 = no window was begun */
    uint64_t epoch;      /* the header's when it was last opened: one behind is from before the last start */
    uint64_t unused[2];
} Account;

typedef struct {
    uint32_t next, previous; /* among those of its process (next alone: among the free ones) */
    uint32_t process;        /* 0 = free; else the slot's number plus one */
    uint32_t count;
    uint32_t accounts[MOST_AT_ONCE];
    int64_t tokens, cost_pusd;
} Held;

#define FILE_BYTES (HEADER_BYTES + PROCESSES * sizeof(Process) + ACCOUNTS * sizeof(Account) + (size_t)HELD * sizeof(Held))

typedef struct {
    PyObject_HEAD
    char *memory;
    Header *header;
    Process *processes;
    Account *accounts;
    Held *held; /* held[0] is not used: 0 says "none" */
    int fd, slot;
} Levels;

typedef struct {
    PyObject_HEAD
    Levels *levels;
    PyObject *headers;
    uint32_t held;
} Permit;

static PyTypeObject PermitType;

/* the lock */

static void lock(Levels *self)
{
    int outcome = pthread_mutex_lock(&self->header->lock);
    if (outcome == EOWNERDEAD) /* it died between two assignments: at worst one reservation is counted and not held */
        pthread_mutex_consistent(&self->header->lock);
}

static void unlock(Levels *self)
{
    pthread_mutex_unlock(&self->header->lock);
}

static int make_mutex(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    int outcome = pthread_mutex_init(mutex, &kind);
    pthread_mutexattr_destroy(&kind);
    return outcome;
}

/* arithmetic: money stays within 64 bits, and what would pass them stays at the top */

static int64_t sum(int64_t one, int64_t other)
{
    int64_t result;
    if (__builtin_add_overflow(one, other, &result))
        return other > 0 ? INT64_MAX : INT64_MIN;
    return result;
}

static double filled(double left, int64_t limit, double elapsed_s)
{
    if (limit == NONE)
        return left;
    left += elapsed_s * (double)limit / 60.0;
    return left < (double)limit ? left : (double)limit;
}

static void refill(Account *account, double now_s)
{
    double elapsed_s = now_s - account->updated_s;
    if (elapsed_s <= 0) { /* another process read its clock a moment later; or the clock was set back: nothing for that time */
        if (elapsed_s < -1)
            account->updated_s = now_s;
        return;
    }
    account->updated_s = now_s;
    account->requests_left = filled(account->requests_left, account->rpm, elapsed_s);
    account->tokens_left = filled(account->tokens_left, account->tpm, elapsed_s);
}

static double moved(double left, int64_t old, int64_t new)
{
    if (new == NONE)
        return 0;
    if (old == NONE)
        return (double)new;
    left += new > old ? (double)(new - old) : 0;
    return left < (double)new ? left : (double)new;
}

/* reservations */

static uint32_t take_held(Levels *self)
{
    Header *header = self->header;
    uint32_t number = header->held_free;
    if (number) {
        header->held_free = self->held[number].next;
    } else {
        if (header->held_fresh >= HELD)
            return 0;
        number = header->held_fresh++;
    }
    Process *process = &self->processes[self->slot];
    Held *held = &self->held[number];
    held->process = (uint32_t)self->slot + 1;
    held->previous = 0;
    held->next = process->held;
    if (process->held)
        self->held[process->held].previous = number;
    process->held = number;
    header->held_used++;
    return number;
}

static void drop_held(Levels *self, uint32_t number)
{
    Held *held = &self->held[number];
    if (held->previous)
        self->held[held->previous].next = held->next;
    else
        self->processes[held->process - 1].held = held->next;
    if (held->next)
        self->held[held->next].previous = held->previous;
    held->process = 0;
    held->next = self->header->held_free;
    self->header->held_free = number;
    self->header->held_used--;
}

static void settle(Levels *self, uint32_t number, int64_t tokens, int64_t cost_pusd)
{
    Held *held = &self->held[number];
    for (uint32_t i = 0; i < held->count; i++) {
        Account *account = &self->accounts[held->accounts[i]];
        account->running--;
        account->reserved_pusd -= held->cost_pusd;
        account->spent_pusd = sum(account->spent_pusd, cost_pusd);
        account->tokens_left += (double)(held->tokens - tokens);
        if (account->tpm != NONE && account->tokens_left > (double)account->tpm)
            account->tokens_left = (double)account->tpm;
    }
    drop_held(self, number);
}

/* What a killed process held: its slots are free, its reservation counts as used. Nobody knows better before the ledger is read. */
static uint32_t give_back(Levels *self, int slot)
{
    uint32_t count = 0, number;
    while ((number = self->processes[slot].held) != 0) {
        settle(self, number, self->held[number].tokens, self->held[number].cost_pusd);
        count++;
    }
    return count;
}

static uint32_t sweep(Levels *self)
{
    uint32_t count = 0;
    for (int slot = 0; slot < PROCESSES; slot++) {
        Process *process = &self->processes[slot];
        if (slot == self->slot || process->state != RUNNING_SLOT)
            continue;
        int outcome = pthread_mutex_trylock(&process->alive);
        if (outcome == EBUSY)
            continue;
        if (outcome == EOWNERDEAD)
            pthread_mutex_consistent(&process->alive);
        count += give_back(self, slot);
        process->state = FREE_SLOT;
        pthread_mutex_unlock(&process->alive);
    }
    return count;
}

/* attaching */

/* Nobody else is attached. The levels of rates stay; what ran is over, and what was spent the ledger is asked again. */
static int begin_anew(Levels *self)
{
    Header *header = self->header;
    uint64_t epoch = header->magic == MAGIC ? header->epoch + 1 : 1;
    if (header->magic != MAGIC || header->accounts_used > ACCOUNTS / 2) { /* too many were left behind: full again, all of them */
        if (ftruncate(self->fd, 0) < 0 || ftruncate(self->fd, (off_t)FILE_BYTES) < 0)
            return -1;
    }
    memset(self->processes, 0, PROCESSES * sizeof(Process));
    for (int slot = 0; slot < PROCESSES; slot++)
        make_mutex(&self->processes[slot].alive);
    make_mutex(&header->lock);
    header->held_free = header->held_used = 0;
    header->held_fresh = 1;
    header->epoch = epoch;
    header->magic = MAGIC;
    return 0;
}

static int enter(Levels *self)
{
    for (int attempt = 0; attempt < 2; attempt++) {
        for (int slot = 0; slot < PROCESSES; slot++) {
            Process *process = &self->processes[slot];
            if (process->state != FREE_SLOT)
                continue;
            int outcome = pthread_mutex_trylock(&process->alive);
            if (outcome == EOWNERDEAD)
                outcome = pthread_mutex_consistent(&process->alive);
            if (outcome == 0) {
                process->state = RUNNING_SLOT;
                process->pid = (int32_t)getpid();
                process->held = 0;
                self->slot = slot;
                return 0;
            }
        }
        sweep(self);
    }
    return -1;
}

static int Levels_init(Levels *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", NULL};
    PyObject *path = NULL;
    if (self->memory != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "these levels are attached already");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&", names, PyUnicode_FSConverter, &path))
        return -1;
    self->fd = open(PyBytes_AS_STRING(path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    Py_DECREF(path);
    if (self->fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    struct stat found;
    int outcome, alone;
    /* Byte 0 is held shared by all who are attached, so whoever gets it alone is the first; byte 1 lets one at a time in. Both are locks of
     * the open file (not of the process): a descriptor that is opened and closed elsewhere does not take them away. */
    struct flock one = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1, .l_len = 1};
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    Py_BEGIN_ALLOW_THREADS
    do
        outcome = fcntl(self->fd, F_OFD_SETLKW, &one);
    while (outcome < 0 && errno == EINTR);
    Py_END_ALLOW_THREADS
    if (outcome < 0 || fstat(self->fd, &found) < 0)
        goto failed;
    alone = fcntl(self->fd, F_OFD_SETLK, &all) == 0;
    if ((size_t)found.st_size != FILE_BYTES) {
        if (!alone) {
            errno = EBUSY;
            goto failed;
        }
        if (ftruncate(self->fd, 0) < 0 || ftruncate(self->fd, (off_t)FILE_BYTES) < 0)
            goto failed;
    }
    self->memory = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
    if (self->memory == MAP_FAILED) {
        self->memory = NULL;
        goto failed;
    }
    self->header = (Header *)self->memory;
    self->processes = (Process *)(self->memory + HEADER_BYTES);
    self->accounts = (Account *)(self->processes + PROCESSES);
    self->held = (Held *)(self->accounts + ACCOUNTS);
    if (alone && begin_anew(self) < 0)
        goto failed;
    all.l_type = F_RDLCK;
    if (fcntl(self->fd, F_OFD_SETLK, &all) < 0)
        goto failed;
    lock(self);
    outcome = enter(self);
    unlock(self);
    if (outcome < 0) {
        errno = EUSERS;
        goto failed;
    }
    one.l_type = F_UNLCK;
    fcntl(self->fd, F_OFD_SETLK, &one);
    return 0;
failed:
    PyErr_SetFromErrno(PyExc_OSError);
    if (self->memory != NULL) {
        munmap(self->memory, FILE_BYTES);
        self->memory = NULL;
    }
    close(self->fd);
    self->fd = -1;
    return -1;
}

static PyObject *Levels_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Levels *self = (Levels *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->fd = -1;
        self->slot = -1;
    }
    return (PyObject *)self;
}

static void leave(Levels *self)
{
    if (self->memory == NULL)
        return;
    lock(self);
    give_back(self, self->slot);
    self->processes[self->slot].state = FREE_SLOT;
    unlock(self);
    pthread_mutex_unlock(&self->processes[self->slot].alive);
    munmap(self->memory, FILE_BYTES);
    self->memory = NULL;
    close(self->fd);
    self->fd = -1;
}

static void Levels_dealloc(Levels *self)
{
    leave(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *Levels_close(Levels *self, PyObject *Py_UNUSED(none))
{
    leave(self);
    Py_RETURN_NONE;
}

static int attached(Levels *self)
{
    if (self->memory != NULL)
        return 1;
    PyErr_SetString(PyExc_ValueError, "these levels are closed");
    return 0;
}

/* accounts */

static Account *account_of(Levels *self, PyObject *number)
{
    long index = PyLong_AsLong(number);
    if (index < 0 || index >= (long)ACCOUNTS) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_IndexError, "there is no such account");
        return NULL;
    }
    return &self->accounts[index];
}

/* open(id: bytes of 16, now_s) -> number. A new account is full under no limits. */
static PyObject *Levels_open(Levels *self, PyObject *const *args, Py_ssize_t count)
{
    if (!attached(self))
        return NULL;
    if (count != 2 || !PyBytes_CheckExact(args[0]) || PyBytes_GET_SIZE(args[0]) != 16) {
        PyErr_SetString(PyExc_TypeError, "open(id: bytes of 16, now_s: float)");
        return NULL;
    }
    double now_s = PyFloat_AsDouble(args[1]);
    if (now_s == -1.0 && PyErr_Occurred())
        return NULL;
    uint64_t id[2];
    memcpy(id, PyBytes_AS_STRING(args[0]), 16);
    lock(self);
    uint32_t index = (uint32_t)(id[0] & (ACCOUNTS - 1));
    for (;;) {
        Account *account = &self->accounts[index];
        if (account->id[0] == id[0] && account->id[1] == id[1]) {
            if (account->epoch != self->header->epoch) {
                account->running = account->reserved_pusd = account->spent_pusd = 0;
                account->window_end_s = 0;
                account->epoch = self->header->epoch;
            }
            break;
        }
        if (!(account->id[0] | account->id[1])) {
            if (self->header->accounts_used >= ACCOUNTS - ACCOUNTS / 8) { /* a full table would be searched for ever */
                unlock(self);
                PyErr_SetString(PyExc_MemoryError, "there are more limited callers than this host can count");
                return NULL;
            }
            memset(account, 0, sizeof *account);
            account->updated_s = now_s;
            account->rpm = account->tpm = account->concurrency = account->budget_pusd = NONE;
            account->id[0] = id[0];
            account->id[1] = id[1];
            account->epoch = self->header->epoch;
            self->header->accounts_used++;
            break;
        }
        index = (index + 1) & (ACCOUNTS - 1);
    }
    unlock(self);
    return PyLong_FromLong((long)index);
}

static int limit_of(PyObject *value, int64_t *limit)
{
    *limit = value == Py_None ? NONE : PyLong_AsLongLong(value);
    return !(*limit == -1 && value != Py_None && PyErr_Occurred());
}

/* change(number, rpm, tpm, concurrency, budget_pusd, now_s): the limits in force. None = no such limit. */
static PyObject *Levels_change(Levels *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t rpm, tpm, concurrency, budget_pusd;
    if (!attached(self))
        return NULL;
    if (count != 6) {
        PyErr_SetString(PyExc_TypeError, "change(number, rpm, tpm, concurrency, budget_pusd, now_s)");
        return NULL;
    }
    Account *account = account_of(self, args[0]);
    double now_s = PyFloat_AsDouble(args[5]);
    if (account == NULL || (now_s == -1.0 && PyErr_Occurred()))
        return NULL;
    if (!limit_of(args[1], &rpm) || !limit_of(args[2], &tpm) || !limit_of(args[3], &concurrency) || !limit_of(args[4], &budget_pusd))
        return NULL;
    lock(self);
    refill(account, now_s);
    account->requests_left = moved(account->requests_left, account->rpm, rpm);
    account->tokens_left = moved(account->tokens_left, account->tpm, tpm);
    account->rpm = rpm;
    account->tpm = tpm;
    account->concurrency = concurrency;
    account->budget_pusd = budget_pusd;
    unlock(self);
    Py_RETURN_NONE;
}

/* window(number, end_s, spent_pusd): a budget's window begins, unless another process has begun it. */
static PyObject *Levels_window(Levels *self, PyObject *const *args, Py_ssize_t count)
{
    if (!attached(self))
        return NULL;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "window(number, end_s, spent_pusd)");
        return NULL;
    }
    Account *account = account_of(self, args[0]);
    double end_s = PyFloat_AsDouble(args[1]);
    int64_t spent_pusd = PyLong_AsLongLong(args[2]);
    if (account == NULL || PyErr_Occurred())
        return NULL;
    lock(self);
    if (account->window_end_s != end_s) {
        account->window_end_s = end_s;
        account->spent_pusd = spent_pusd;
    }
    unlock(self);
    Py_RETURN_NONE;
}

/* window_end(number) -> Unix seconds, 0.0 = none was begun. */
static PyObject *Levels_window_end(Levels *self, PyObject *number)
{
    if (!attached(self))
        return NULL;
    Account *account = account_of(self, number);
    return account == NULL ? NULL : PyFloat_FromDouble(account->window_end_s);
}

/* headers */

static char *put_text(char *at, const char *text)
{
    size_t size = strlen(text);
    memcpy(at, text, size);
    return at + size;
}

static char *put_number(char *at, int64_t value)
{
    char digits[20];
    int count = 0;
    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (count)
        *at++ = digits[--count];
    return at;
}

/* As OpenAI writes it: 20ms, 6s, 1m30s, 6m0s. */
static char *put_duration(char *at, double seconds)
{
    if (seconds < 1)
        return put_text(put_number(at, seconds > 0 ? (int64_t)(seconds * 1000) : 0), "ms");
    int64_t whole = (int64_t)(seconds + 0.999);
    if (whole >= 60) {
        at = put_text(put_number(at, whole / 60), "m");
        whole %= 60;
    }
    return put_text(put_number(at, whole), "s");
}

static char *put_lines(char *at, const char *what, int64_t limit, double left)
{
    at = put_text(put_text(at, "x-ratelimit-limit-"), what);
    at = put_number(put_text(at, ": "), limit);
    at = put_text(put_text(at, "\r\nx-ratelimit-remaining-"), what);
    at = put_number(put_text(at, ": "), left > 0 ? (int64_t)left : 0);
    at = put_text(put_text(at, "\r\nx-ratelimit-reset-"), what);
    at = put_duration(put_text(at, ": "), ((double)limit - left) * 60 / (double)limit);
    return put_text(at, "\r\n");
}

#define HEADERS_BYTES 512

/* From a copy of the account, taken under the lock. */
static PyObject *headers_of(const Account *account)
{
    char lines[HEADERS_BYTES], *at = lines;
    if (account->rpm > 0)
        at = put_lines(at, "requests", account->rpm, account->requests_left);
    if (account->tpm > 0)
        at = put_lines(at, "tokens", account->tpm, account->tokens_left);
    return PyBytes_FromStringAndSize(lines, at - lines);
}

/* headers(number, now_s) -> the x-ratelimit lines. */
static PyObject *Levels_headers(Levels *self, PyObject *const *args, Py_ssize_t count)
{
    if (!attached(self))
        return NULL;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "headers(number, now_s)");
        return NULL;
    }
    Account *account = account_of(self, args[0]);
    double now_s = PyFloat_AsDouble(args[1]);
    if (account == NULL || (now_s == -1.0 && PyErr_Occurred()))
        return NULL;
    lock(self);
    refill(account, now_s);
    Account copy = *account;
    unlock(self);
    return headers_of(&copy);
}

/* deciding */

typedef struct {
    int kind, final;
    double wait_s; /* negative: nobody knows how long */
} Why;

/* Why this account refuses; kind = NONE where it does not. */
static Why refusal(const Account *account, int64_t tokens, int64_t cost_pusd, double now_s)
{
    if (account->budget_pusd != NONE &&
        (__int128)account->spent_pusd + account->reserved_pusd + cost_pusd > account->budget_pusd) {
        double left_s = account->window_end_s - now_s;
        return (Why){BUDGET, 1, isinf(account->window_end_s) ? -1 : left_s > 0 ? left_s : 0};
    }
    if (account->tpm != NONE && tokens > account->tpm)
        return (Why){TOKENS, 1, -1};
    Why why = {NONE, 0, 0};
    if (account->rpm != NONE && account->requests_left < 1)
        why = (Why){REQUESTS, 0, account->rpm ? (1 - account->requests_left) * 60 / (double)account->rpm : 60};
    if (account->tpm != NONE && account->tokens_left < (double)tokens) {
        double wait_s = account->tpm ? ((double)tokens - account->tokens_left) * 60 / (double)account->tpm : 60;
        if (why.kind == NONE || wait_s > why.wait_s)
            why = (Why){TOKENS, 0, wait_s};
    }
    if (why.kind == NONE && account->concurrency != NONE && account->running >= account->concurrency)
        why = (Why){CONCURRENCY, 0, 1};
    return why;
}

/* reserve(numbers: tuple, tokens, cost_pusd, now_s) -> Permit, or (kind, wait_s | None, final, place in numbers, headers). */
static PyObject *Levels_reserve(Levels *self, PyObject *const *args, Py_ssize_t count)
{
    uint32_t accounts[MOST_AT_ONCE];
    if (!attached(self))
        return NULL;
    if (count != 4 || !PyTuple_CheckExact(args[0]) || PyTuple_GET_SIZE(args[0]) < 1 || PyTuple_GET_SIZE(args[0]) > MOST_AT_ONCE) {
        PyErr_SetString(PyExc_TypeError, "reserve(numbers: tuple of 1 to 4, tokens, cost_pusd, now_s)");
        return NULL;
    }
    uint32_t size = (uint32_t)PyTuple_GET_SIZE(args[0]);
    for (uint32_t i = 0; i < size; i++) {
        Account *account = account_of(self, PyTuple_GET_ITEM(args[0], i));
        if (account == NULL)
            return NULL;
        accounts[i] = (uint32_t)(account - self->accounts);
    }
    int64_t tokens = PyLong_AsLongLong(args[1]), cost_pusd = PyLong_AsLongLong(args[2]);
    double now_s = PyFloat_AsDouble(args[3]);
    if (PyErr_Occurred())
        return NULL;
    Permit *permit = PyObject_New(Permit, &PermitType);
    if (permit == NULL)
        return NULL;
    permit->levels = NULL;
    permit->headers = NULL;
    permit->held = 0;

    Why why = {NONE, 0, 0};
    uint32_t place = 0, number = 0;
    Account copy;
    lock(self);
    for (; place < size; place++) {
        Account *account = &self->accounts[accounts[place]];
        refill(account, now_s);
        why = refusal(account, tokens, cost_pusd, now_s);
        if (why.kind != NONE)
            break;
    }
    if (why.kind == NONE && (number = take_held(self)) != 0) {
        Held *held = &self->held[number];
        held->count = size;
        held->tokens = tokens;
        held->cost_pusd = cost_pusd;
        for (uint32_t i = 0; i < size; i++) {
            Account *account = &self->accounts[accounts[i]];
            held->accounts[i] = accounts[i];
            account->requests_left -= 1;
            account->tokens_left -= (double)tokens;
            account->running++;
            account->reserved_pusd = sum(account->reserved_pusd, cost_pusd);
        }
    }
    copy = self->accounts[accounts[why.kind == NONE ? 0 : place]];
    unlock(self);

    PyObject *headers = headers_of(&copy);
    if (number && headers != NULL) {
        Py_INCREF(self);
        permit->levels = self;
        permit->headers = headers;
        permit->held = number;
        return (PyObject *)permit;
    }
    Py_DECREF(permit);
    if (headers == NULL)
        return NULL;
    if (why.kind == NONE) {
        Py_DECREF(headers);
        PyErr_SetString(PyExc_MemoryError, "more requests run than this host can count");
        return NULL;
    }
    PyObject *wait_s = why.wait_s < 0 ? Py_NewRef(Py_None) : PyFloat_FromDouble(why.wait_s);
    return Py_BuildValue("(iNNIN)", why.kind, wait_s, PyBool_FromLong(why.final), place, headers);
}

static PyObject *Permit_settle(Permit *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "settle(tokens, cost_pusd)");
        return NULL;
    }
    int64_t tokens = PyLong_AsLongLong(args[0]), cost_pusd = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    Levels *levels = self->levels;
    if (levels != NULL) {
        self->levels = NULL;
        if (levels->memory != NULL) {
            lock(levels);
            settle(levels, self->held, tokens, cost_pusd);
            unlock(levels);
        }
        Py_DECREF(levels);
    }
    Py_RETURN_NONE;
}

static void Permit_dealloc(Permit *self)
{
    Py_XDECREF(self->levels);
    Py_XDECREF(self->headers);
    PyObject_Free(self);
}

static PyObject *Levels_sweep(Levels *self, PyObject *Py_UNUSED(none))
{
    if (!attached(self))
        return NULL;
    lock(self);
    uint32_t count = sweep(self);
    unlock(self);
    return PyLong_FromUnsignedLong(count);
}

/* state(number) -> (running, reserved_pusd, spent_pusd, requests_left, tokens_left): for tests and `doctor`. */
static PyObject *Levels_state(Levels *self, PyObject *number)
{
    if (!attached(self))
        return NULL;
    Account *account = account_of(self, number);
    if (account == NULL)
        return NULL;
    lock(self);
    Account copy = *account;
    unlock(self);
    return Py_BuildValue(
        "(LLLdd)", (long long)copy.running, (long long)copy.reserved_pusd, (long long)copy.spent_pusd, copy.requests_left, copy.tokens_left);
}

static PyMethodDef levels_methods[] = {
    {"open", (PyCFunction)(void (*)(void))Levels_open, METH_FASTCALL, "The number of an account."},
    {"change", (PyCFunction)(void (*)(void))Levels_change, METH_FASTCALL, "Put limits in force."},
    {"window", (PyCFunction)(void (*)(void))Levels_window, METH_FASTCALL, "Begin a budget's window."},
    {"window_end", (PyCFunction)Levels_window_end, METH_O, "When the budget's window ends."},
    {"headers", (PyCFunction)(void (*)(void))Levels_headers, METH_FASTCALL, "The x-ratelimit lines."},
    {"reserve", (PyCFunction)(void (*)(void))Levels_reserve, METH_FASTCALL, "Take from all of these accounts, or from none."},
    {"sweep", (PyCFunction)Levels_sweep, METH_NOARGS, "Give back what killed processes held."},
    {"state", (PyCFunction)Levels_state, METH_O, "What is left of an account."},
    {"close", (PyCFunction)Levels_close, METH_NOARGS, "Give back what this process holds, and detach."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject LevelsType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gateway.limits.levels.Levels",
    .tp_basicsize = sizeof(Levels),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "The levels of one host, attached to by this process.",
    .tp_new = Levels_new,
    .tp_init = (initproc)Levels_init,
    .tp_dealloc = (destructor)Levels_dealloc,
    .tp_methods = levels_methods,
};

static PyMethodDef permit_methods[] = {
    {"settle", (PyCFunction)(void (*)(void))Permit_settle, METH_FASTCALL, "The request is over and used this much."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef permit_members[] = {
    {"headers", T_OBJECT_EX, offsetof(Permit, headers), READONLY, "The x-ratelimit lines of the answer."},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject PermitType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gateway.limits.levels.LevelsPermit",
    .tp_basicsize = sizeof(Permit),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "A reservation.",
    .tp_dealloc = (destructor)Permit_dealloc,
    .tp_methods = permit_methods,
    .tp_members = permit_members,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "levels", "The form in C of levels.py.", -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_levels(void)
{
    _Static_assert(sizeof(Header) <= HEADER_BYTES, "the header has its room");
    if (PyType_Ready(&LevelsType) < 0 || PyType_Ready(&PermitType) < 0)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made == NULL)
        return NULL;
    if (PyModule_AddObjectRef(made, "Levels", (PyObject *)&LevelsType) < 0 ||
        PyModule_AddObjectRef(made, "LevelsPermit", (PyObject *)&PermitType) < 0 ||
        PyModule_AddStringConstant(made, "FORM", "c") < 0) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
