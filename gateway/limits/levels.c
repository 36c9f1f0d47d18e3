/* What is left of every limit, in a file that all processes of a host map: the form in C of levels.py, which says what it is for and what
 * each function does. Taken in its place where it is compiled.
 *
 *     Header     the lock, how much room there is, and the undo record
 *     Process[]  how much each attached process holds
 *     Account[]  a hash table by the digest of the limit's id
 *     Held[]     one record for each reservation that is not settled, so that those of a killed process can be given back
 *
 * One lock guards everything: a decision takes less time than a finer lock would save. It is a robust mutex of POSIX: if a process is killed
 * that holds it, the next who asks is told. Whatever changes accounts or records first writes down how they were (`begin`), and that is put
 * back then: a step was made whole, or not at all. No lock is held while Python runs.
 *
 * That a process lives is a lock of its open file (not a mutex, which its thread would own): it goes with the process, and not before. A
 * child that was forked is not attached.
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
#include <time.h>
#include <unistd.h>

#define MAGIC 0x34736c6576656c67ULL /* "glevels4" */
#define PROCESSES 256
#define ACCOUNTS (1u << 18)
#define HELD (1u << 18)
#define MOST_AT_ONCE 4
#define NONE (-1)
#define WHOSE 4
#define HEADER_BYTES 1024

enum { ALL_BYTE, ONE_BYTE, FIRST_PROCESS_BYTE }; /* of the file, whose locks mean: attached; entering; this process lives */
/* Why a request is refused. The first four are the rates, the last two the budgets. */
enum { REQUESTS, TOKENS, REQUESTS_DAY, TOKENS_DAY, CONCURRENCY, BUDGET, TOKEN_BUDGET };
#define RATES 4
#define COUNTS_TOKENS(rate) ((rate) & 1)
static const double period_s[RATES] = {60, 60, 86400, 86400};
enum { MONEY, IN_TOKENS, BUDGETS };

typedef struct {
    int64_t amount, reserved, spent;
    double end_s; /* of its window; 0 = none was begun */
    int64_t lost; /* the part of `spent` that killed processes had reserved: what it came to, the books will say */
} Budget;

typedef struct {
    uint64_t id[2];
    double updated_s;
    int64_t rates[RATES]; /* NONE = no such limit, here and below */
    double left[RATES];   /* below zero: owed */
    int64_t concurrency, running;
    Budget budgets[BUDGETS];
    uint64_t epoch; /* the header's when it was last opened: one behind is from before the last start */
    uint8_t window_kinds[BUDGETS]; /* 0 = none was begun */
    uint8_t whose, unused;
    int32_t soft; /* percent of a budget from which on answers warn */
} Account;

typedef struct {
    uint32_t next;    /* among the free ones */
    uint32_t process; /* 0 = free; else the slot's number plus one */
    uint32_t count, unused;
    uint32_t accounts[MOST_AT_ONCE];
    int64_t tokens, cost_pusd;
} Held;

typedef struct {
    uint32_t accounts_used, held_free, held_fresh;
} Room;

/* What a step may change, as it was before. */
typedef struct {
    uint32_t begun, count, record, slot;
    uint32_t numbers[MOST_AT_ONCE];
    Account accounts[MOST_AT_ONCE];
    Held held;
    Room room;
    uint32_t process_holds;
} Undo;

typedef struct {
    uint64_t magic, epoch;
    pthread_mutex_t lock;
    Room room;
    Undo undo;
} Header;

typedef struct {
    uint32_t holds; /* how many reservations */
} Process;

#define FILE_BYTES (HEADER_BYTES + PROCESSES * sizeof(Process) + ACCOUNTS * sizeof(Account) + (size_t)HELD * sizeof(Held))

typedef struct Levels {
    PyObject_HEAD
    char *memory;
    Header *header;
    Process *processes;
    Account *accounts;
    Held *held; /* held[0] is not used: 0 says "none" */
    int fd, slot;
    struct Levels *next; /* of those attached by this process */
} Levels;

typedef struct {
    PyObject_HEAD
    Levels *levels;
    PyObject *headers;
    uint32_t held;
} Permit;

static PyTypeObject PermitType;
static Levels *first_attached;

/* the lock, and steps that are made whole or not at all */

/* A process is killed between two instructions: what it stored before the first is there for the others, if the compiler keeps the order. */
#define IN_THIS_ORDER() __atomic_signal_fence(__ATOMIC_SEQ_CST)

static void begin(Levels *self, const uint32_t *numbers, uint32_t count, uint32_t record, int slot)
{
    Undo *undo = &self->header->undo;
    for (uint32_t i = 0; i < count; i++) {
        undo->numbers[i] = numbers[i];
        undo->accounts[i] = self->accounts[numbers[i]];
    }
    undo->count = count;
    undo->record = record;
    undo->held = self->held[record];
    undo->slot = (uint32_t)slot;
    undo->process_holds = self->processes[slot].holds;
    undo->room = self->header->room;
    IN_THIS_ORDER();
    undo->begun = 1;
    IN_THIS_ORDER();
}

static void commit(Levels *self)
{
    IN_THIS_ORDER();
    self->header->undo.begun = 0;
    IN_THIS_ORDER();
}

/* Safe to be killed in: the next begins again. The bounds are for a file that a crash of the whole machine has torn. */
static void roll_back(Levels *self)
{
    Undo *undo = &self->header->undo;
    if (!undo->begun)
        return;
    for (uint32_t i = 0; i < undo->count && i < MOST_AT_ONCE; i++)
        if (undo->numbers[i] < ACCOUNTS)
            self->accounts[undo->numbers[i]] = undo->accounts[i];
    if (undo->record < HELD && undo->slot < PROCESSES) {
        self->held[undo->record] = undo->held;
        self->processes[undo->slot].holds = undo->process_holds;
    }
    self->header->room = undo->room;
    commit(self);
}

static void lock(Levels *self)
{
    if (pthread_mutex_lock(&self->header->lock) == EOWNERDEAD) {
        roll_back(self);
        pthread_mutex_consistent(&self->header->lock);
    }
}

static void unlock(Levels *self)
{
    pthread_mutex_unlock(&self->header->lock);
}

/* A lock of the open file: a descriptor that is opened and closed elsewhere does not take it away. */
static int file_lock(Levels *self, int command, short kind, off_t byte)
{
    struct flock wanted = {.l_type = kind, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(self->fd, command, &wanted);
}

/* The file is sparse, and a hole that cannot be filled (the disk is full) would kill the process: so it is filled by a call that can fail. */
static int make_room(Levels *self, const void *at, size_t size)
{
    off_t begin_at = (const char *)at - self->memory;
    return fallocate(self->fd, 0, begin_at, (off_t)size) == 0 || (errno != ENOSPC && errno != EDQUOT);
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

static void refill(Account *account, double now_s)
{
    double elapsed_s = now_s - account->updated_s;
    if (elapsed_s <= 0) { /* another process read its clock later, but was here before; or the clock was set back: nothing for that time */
        struct timespec real;
        if (elapsed_s < -1 && clock_gettime(CLOCK_REALTIME, &real) == 0 && account->updated_s > (double)real.tv_sec + 1)
            account->updated_s = (double)real.tv_sec;
        return;
    }
    account->updated_s = now_s;
    for (int rate = 0; rate < RATES; rate++) {
        double limit = (double)account->rates[rate];
        if (account->rates[rate] == NONE)
            continue;
        double left = account->left[rate] + elapsed_s * limit / period_s[rate];
        account->left[rate] = left < limit ? left : limit;
    }
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

/* reservations: all of these within a step, but `give_back` and `sweep`, which make one for each */

/* The record that `take_held` would take; 0: there is none. */
static uint32_t next_held(Levels *self)
{
    const Room *room = &self->header->room;
    if (room->held_free)
        return room->held_free;
    if (room->held_fresh >= HELD || !make_room(self, &self->held[room->held_fresh], sizeof(Held)))
        return 0;
    return room->held_fresh;
}

static Held *take_held(Levels *self, uint32_t number)
{
    Room *room = &self->header->room;
    Held *held = &self->held[number];
    if (number == room->held_free)
        room->held_free = held->next;
    else
        room->held_fresh++;
    held->process = (uint32_t)self->slot + 1;
    self->processes[self->slot].holds++;
    return held;
}

static void settle(Levels *self, uint32_t number, int64_t tokens, int64_t cost_pusd, int is_lost)
{
    Held *held = &self->held[number];
    int slot = (int)held->process - 1;
    begin(self, held->accounts, held->count, number, slot);
    for (uint32_t i = 0; i < held->count; i++) {
        Account *account = &self->accounts[held->accounts[i]];
        account->running--;
        account->budgets[MONEY].reserved -= held->cost_pusd;
        account->budgets[MONEY].spent = sum(account->budgets[MONEY].spent, cost_pusd);
        account->budgets[IN_TOKENS].reserved -= held->tokens;
        account->budgets[IN_TOKENS].spent = sum(account->budgets[IN_TOKENS].spent, tokens);
        if (is_lost) {
            account->budgets[MONEY].lost = sum(account->budgets[MONEY].lost, cost_pusd);
            account->budgets[IN_TOKENS].lost = sum(account->budgets[IN_TOKENS].lost, tokens);
        }
        for (int rate = TOKENS; rate < RATES; rate += TOKENS_DAY - TOKENS) {
            double left = account->left[rate] + ((double)held->tokens - (double)tokens), limit = (double)account->rates[rate];
            account->left[rate] = account->rates[rate] != NONE && left > limit ? limit : left;
        }
    }
    held->process = 0;
    held->next = self->header->room.held_free;
    self->header->room.held_free = number;
    self->processes[slot].holds--;
    commit(self);
}

/* What a killed process held: its slots are free, its reservation counts as used. Nobody knows better before the ledger is read: see
 * `reconcile`. */
static uint32_t give_back(Levels *self, int slot)
{
    uint32_t count = 0;
    for (uint32_t number = 1; self->processes[slot].holds && number < self->header->room.held_fresh; number++)
        if (self->held[number].process == (uint32_t)slot + 1) {
            settle(self, number, self->held[number].tokens, self->held[number].cost_pusd, 1);
            count++;
        }
    return count;
}

static uint32_t sweep(Levels *self)
{
    uint32_t count = 0;
    for (int slot = 0; slot < PROCESSES; slot++) {
        if (slot == self->slot || !self->processes[slot].holds)
            continue;
        if (file_lock(self, F_OFD_SETLK, F_WRLCK, FIRST_PROCESS_BYTE + slot) < 0) /* it lives */
            continue;
        count += give_back(self, slot);
        file_lock(self, F_OFD_SETLK, F_UNLCK, FIRST_PROCESS_BYTE + slot);
    }
    return count;
}

/* attaching */

/* Nobody else is attached. The levels of rates stay; what ran is over, and what was spent the ledger is asked again. */
static int begin_anew(Levels *self)
{
    Header *header = self->header;
    uint64_t epoch = header->magic == MAGIC ? header->epoch + 1 : 1;
    if (header->magic == MAGIC)
        roll_back(self);
    if (header->magic != MAGIC || header->room.accounts_used > ACCOUNTS / 2) { /* too many were left behind: full again, all of them */
        if (ftruncate(self->fd, 0) < 0 || ftruncate(self->fd, (off_t)FILE_BYTES) < 0)
            return -1;
    }
    if (!make_room(self, self->memory, HEADER_BYTES + PROCESSES * sizeof(Process)))
        return -1;
    memset(self->processes, 0, PROCESSES * sizeof(Process));
    errno = make_mutex(&header->lock);
    if (errno)
        return -1;
    header->undo.begun = 0;
    header->room.held_free = 0;
    header->room.held_fresh = 1;
    header->epoch = epoch;
    IN_THIS_ORDER();
    header->magic = MAGIC;
    return 0;
}

/* A slot of its own, free of what a killed process left in it. */
static int enter(Levels *self)
{
    for (int slot = 0; slot < PROCESSES; slot++) {
        if (file_lock(self, F_OFD_SETLK, F_WRLCK, FIRST_PROCESS_BYTE + slot) < 0)
            continue;
        lock(self);
        give_back(self, slot);
        unlock(self);
        self->slot = slot;
        return 0;
    }
    errno = EUSERS;
    return -1;
}

/* Byte 0 is held shared by all who are attached, so whoever gets it alone is the first; byte 1 lets one at a time in. */
static int attach(Levels *self)
{
    struct stat found;
    if (fstat(self->fd, &found) < 0)
        return -1;
    int alone = file_lock(self, F_OFD_SETLK, F_WRLCK, ALL_BYTE) == 0;
    if ((size_t)found.st_size != FILE_BYTES) {
        if (!alone) {
            errno = EBUSY;
            return -1;
        }
        if (ftruncate(self->fd, 0) < 0 || ftruncate(self->fd, (off_t)FILE_BYTES) < 0)
            return -1;
    }
    void *memory = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
    if (memory == MAP_FAILED)
        return -1;
    self->memory = memory;
    self->header = (Header *)self->memory;
    self->processes = (Process *)(self->memory + HEADER_BYTES);
    self->accounts = (Account *)(self->processes + PROCESSES);
    self->held = (Held *)(self->accounts + ACCOUNTS);
    if (!make_room(self, self->memory, HEADER_BYTES))
        return -1;
    if (!alone && self->header->magic != MAGIC) {
        errno = EBUSY;
        return -1;
    }
    if (alone && begin_anew(self) < 0)
        return -1;
    if (file_lock(self, F_OFD_SETLK, F_RDLCK, ALL_BYTE) < 0)
        return -1;
    return enter(self);
}

static void detach(Levels *self)
{
    if (self->memory != NULL)
        munmap(self->memory, FILE_BYTES);
    self->memory = NULL;
    close(self->fd);
    self->fd = -1;
}

/* A forked child is another process: what it inherits would let it use what its parent holds, and keep its parent alive in others' eyes. */
static void forget_in_child(void)
{
    for (; first_attached != NULL; first_attached = first_attached->next)
        detach(first_attached);
}

static int Levels_init(Levels *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", NULL};
    PyObject *path = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&", names, PyUnicode_FSConverter, &path))
        return -1;
    if (self->fd >= 0 || self->slot >= 0) {
        Py_DECREF(path);
        PyErr_SetString(PyExc_RuntimeError, "these levels were attached already");
        return -1;
    }
    self->fd = open(PyBytes_AS_STRING(path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (self->fd < 0)
        goto failed;
    int outcome;
    do {
        Py_BEGIN_ALLOW_THREADS
        outcome = file_lock(self, F_OFD_SETLKW, F_WRLCK, ONE_BYTE);
        Py_END_ALLOW_THREADS
        if (outcome < 0 && errno == EINTR && PyErr_CheckSignals() < 0)
            goto closed;
    } while (outcome < 0 && errno == EINTR);
    if (outcome < 0 || attach(self) < 0)
        goto failed;
    file_lock(self, F_OFD_SETLK, F_UNLCK, ONE_BYTE);
    self->next = first_attached;
    first_attached = self;
    Py_DECREF(path);
    return 0;
failed:
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, PyBytes_AS_STRING(path));
closed:
    Py_DECREF(path);
    if (self->fd >= 0)
        detach(self);
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
    unlock(self);
    detach(self);
    Levels **link = &first_attached;
    while (*link != self)
        link = &(*link)->next;
    *link = self->next;
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

/* Of the number; where the caller converts other arguments too, this comes last: a conversion may run Python, which may close. */
static Account *account_of(Levels *self, PyObject *number)
{
    long index = PyLong_AsLong(number);
    if (index == -1 && PyErr_Occurred())
        return NULL;
    if (index < 0 || index >= (long)ACCOUNTS) {
        PyErr_SetString(PyExc_IndexError, "there is no such account");
        return NULL;
    }
    return attached(self) ? &self->accounts[index] : NULL;
}

/* A new account (where an id is given), or one from before the last start. */
static void claim(Levels *self, Account *account, const uint64_t *id, double now_s)
{
    if (id != NULL) {
        memset(account, 0, sizeof *account);
        account->id[0] = id[0];
        account->id[1] = id[1];
        account->updated_s = now_s;
        for (int rate = 0; rate < RATES; rate++)
            account->rates[rate] = NONE;
        account->concurrency = account->soft = NONE;
        account->budgets[MONEY].amount = account->budgets[IN_TOKENS].amount = NONE;
        account->epoch = self->header->epoch;
        self->header->room.accounts_used++;
    } else if (account->epoch != self->header->epoch) {
        account->running = 0;
        for (int of = 0; of < BUDGETS; of++) {
            account->budgets[of] = (Budget){account->budgets[of].amount, 0, 0, 0, 0};
            account->window_kinds[of] = 0;
        }
        account->epoch = self->header->epoch;
    }
}

/* open(id: bytes of 16, now_s) -> number. A new account is full under no limits. */
static PyObject *Levels_open(Levels *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_CheckExact(args[0]) || PyBytes_GET_SIZE(args[0]) != 16) {
        PyErr_SetString(PyExc_TypeError, "open(id: bytes of 16, now_s: float)");
        return NULL;
    }
    double now_s = PyFloat_AsDouble(args[1]);
    if ((now_s == -1.0 && PyErr_Occurred()) || !attached(self))
        return NULL;
    uint64_t id[2];
    memcpy(id, PyBytes_AS_STRING(args[0]), 16);
    uint32_t index = (uint32_t)(id[0] & (ACCOUNTS - 1));
    int found = 0;
    lock(self);
    for (uint32_t tries = 0; tries < ACCOUNTS && !found; tries++) {
        Account *account = &self->accounts[index];
        if (!make_room(self, account, sizeof *account))
            break;
        int is_free = !(account->id[0] | account->id[1]);
        if (is_free && self->header->room.accounts_used >= ACCOUNTS - ACCOUNTS / 8) /* a full table would be searched for ever */
            break;
        if (is_free || (account->id[0] == id[0] && account->id[1] == id[1])) {
            begin(self, &index, 1, 0, self->slot);
            claim(self, account, is_free ? id : NULL, now_s);
            commit(self);
            found = 1;
        } else {
            index = (index + 1) & (ACCOUNTS - 1);
        }
    }
    unlock(self);
    if (!found) {
        PyErr_SetString(PyExc_MemoryError, "there are more limited callers than this host can count");
        return NULL;
    }
    return PyLong_FromLong((long)index);
}

/* find(id: bytes of 16) -> number | None: of an account that some process has opened since the last start. Makes none. */
static PyObject *Levels_find(Levels *self, PyObject *id)
{
    if (!PyBytes_CheckExact(id) || PyBytes_GET_SIZE(id) != 16) {
        PyErr_SetString(PyExc_TypeError, "find(id: bytes of 16)");
        return NULL;
    }
    if (!attached(self))
        return NULL;
    uint64_t wanted[2];
    memcpy(wanted, PyBytes_AS_STRING(id), 16);
    uint32_t index = (uint32_t)(wanted[0] & (ACCOUNTS - 1));
    int found = 0;
    lock(self);
    for (uint32_t tries = 0; tries < ACCOUNTS; tries++, index = (index + 1) & (ACCOUNTS - 1)) {
        const Account *account = &self->accounts[index];
        if (!make_room(self, account, sizeof *account) || !(account->id[0] | account->id[1]))
            break;
        if (account->id[0] == wanted[0] && account->id[1] == wanted[1]) {
            found = account->epoch == self->header->epoch;
            break;
        }
    }
    unlock(self);
    return found ? PyLong_FromLong((long)index) : Py_NewRef(Py_None);
}

static int limit_of(PyObject *value, int64_t *limit)
{
    *limit = value == Py_None ? NONE : PyLong_AsLongLong(value);
    return !(*limit == -1 && value != Py_None && PyErr_Occurred());
}

enum { RATES_AT = 0, CONCURRENCY_AT = RATES, BUDGETS_AT, SOFT_AT = BUDGETS_AT + BUDGETS, LIMITS };

/* change(number, (rpm, tpm, rpd, tpd, concurrency, budget_pusd, budget_tokens, soft), whose, now_s): the limits in force. None = no such
 * limit. */
static PyObject *Levels_change(Levels *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t limits[LIMITS];
    if (count != 4 || !PyTuple_CheckExact(args[1]) || PyTuple_GET_SIZE(args[1]) != LIMITS) {
        PyErr_SetString(PyExc_TypeError, "change(number, limits: tuple of 8, whose, now_s)");
        return NULL;
    }
    double now_s = PyFloat_AsDouble(args[3]);
    if (now_s == -1.0 && PyErr_Occurred())
        return NULL;
    long whose = PyLong_AsLong(args[2]);
    if (whose == -1 && PyErr_Occurred())
        return NULL;
    for (int i = 0; i < LIMITS; i++)
        if (!limit_of(PyTuple_GET_ITEM(args[1], i), &limits[i]))
            return NULL;
    if (whose < 0 || whose >= WHOSE || limits[SOFT_AT] > INT32_MAX || limits[SOFT_AT] < NONE) {
        PyErr_SetString(PyExc_ValueError, "whose, or soft, is not one of ours");
        return NULL;
    }
    Account *account = account_of(self, args[0]);
    if (account == NULL)
        return NULL;
    uint32_t number = (uint32_t)(account - self->accounts);
    lock(self);
    begin(self, &number, 1, 0, self->slot);
    refill(account, now_s);
    for (int rate = 0; rate < RATES; rate++) {
        account->left[rate] = moved(account->left[rate], account->rates[rate], limits[RATES_AT + rate]);
        account->rates[rate] = limits[RATES_AT + rate];
    }
    account->concurrency = limits[CONCURRENCY_AT];
    for (int of = 0; of < BUDGETS; of++)
        account->budgets[of].amount = limits[BUDGETS_AT + of];
    account->soft = (int32_t)limits[SOFT_AT];
    account->whose = (uint8_t)whose;
    commit(self);
    unlock(self);
    Py_RETURN_NONE;
}

/* window(number, which budget, kind, end_s, spent, back=False): its window begins, unless another process has begun it, or a later one of
 * its kind (`back`: the later one was begun by a clock that was wrong). Of one that has begun, both what was counted here and what the caller has read are no more than was spent. */
static PyObject *Levels_window(Levels *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 5 && count != 6) {
        PyErr_SetString(PyExc_TypeError, "window(number, which, kind, end_s, spent, back=False)");
        return NULL;
    }
    long of = PyLong_AsLong(args[1]);
    if (of == -1 && PyErr_Occurred())
        return NULL;
    long kind = PyLong_AsLong(args[2]);
    if (kind == -1 && PyErr_Occurred())
        return NULL;
    if (of < 0 || of >= BUDGETS || kind < 1 || kind > UINT8_MAX) {
        PyErr_SetString(PyExc_ValueError, "which is 0 or 1, kind 1 to 255");
        return NULL;
    }
    double end_s = PyFloat_AsDouble(args[3]);
    if (end_s == -1.0 && PyErr_Occurred())
        return NULL;
    int64_t spent = PyLong_AsLongLong(args[4]);
    if (spent == -1 && PyErr_Occurred())
        return NULL;
    int back = count == 6 && args[5] == Py_True;
    Account *account = account_of(self, args[0]);
    if (account == NULL)
        return NULL;
    uint32_t number = (uint32_t)(account - self->accounts);
    lock(self);
    if (account->window_kinds[of] != kind || account->budgets[of].end_s < end_s || (back && account->budgets[of].end_s > end_s)) {
        begin(self, &number, 1, 0, self->slot);
        account->window_kinds[of] = (uint8_t)kind;
        account->budgets[of].end_s = end_s;
        account->budgets[of].spent = spent;
        account->budgets[of].lost = 0;
        commit(self);
    } else if (account->budgets[of].end_s == end_s && account->budgets[of].spent < spent) {
        begin(self, &number, 1, 0, self->slot);
        account->budgets[of].spent = spent;
        commit(self);
    }
    unlock(self);
    Py_RETURN_NONE;
}

static int budget_of(PyObject *value)
{
    long of = PyLong_AsLong(value);
    if (of >= 0 && of < BUDGETS)
        return (int)of;
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "which is 0 or 1");
    return -1;
}

/* counted(number, which budget) -> (kind and end_s of its window, spent, the part of that which killed processes had reserved) */
static PyObject *Levels_counted(Levels *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "counted(number, which)");
        return NULL;
    }
    int of = budget_of(args[1]);
    if (of < 0)
        return NULL;
    Account *account = account_of(self, args[0]);
    if (account == NULL)
        return NULL;
    lock(self);
    Budget copy = account->budgets[of];
    int kind = account->window_kinds[of];
    unlock(self);
    return Py_BuildValue("(idLL)", kind, copy.end_s, (long long)copy.spent, (long long)copy.lost);
}

/* reconcile(number, which budget, counted, booked): levels.py has the argument. */
static PyObject *Levels_reconcile(Levels *self, PyObject *const *args, Py_ssize_t count)
{
    int kind;
    double end_s;
    long long spent, lost;
    if (count != 4 || !PyTuple_CheckExact(args[2])) {
        PyErr_SetString(PyExc_TypeError, "reconcile(number, which, counted: tuple of 4, booked)");
        return NULL;
    }
    int of = budget_of(args[1]);
    if (of < 0 || !PyArg_ParseTuple(args[2], "idLL", &kind, &end_s, &spent, &lost))
        return NULL;
    int64_t booked = PyLong_AsLongLong(args[3]);
    if (booked == -1 && PyErr_Occurred())
        return NULL;
    Account *account = account_of(self, args[0]);
    if (account == NULL)
        return NULL;
    uint32_t number = (uint32_t)(account - self->accounts);
    Budget *budget = &account->budgets[of];
    lock(self);
    if (account->window_kinds[of] == kind && budget->end_s == end_s) {
        begin(self, &number, 1, 0, self->slot);
        int64_t known = lost < budget->lost ? lost : budget->lost;
        int64_t too_much = spent > booked ? sum(spent, -booked) : 0;
        budget->lost -= known;
        budget->spent -= too_much < known ? too_much : known;
        if (budget->spent < booked)
            budget->spent = booked;
        commit(self);
    }
    unlock(self);
    Py_RETURN_NONE;
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
    if (value < 0)
        value = 0;
    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (count)
        *at++ = digits[--count];
    return at;
}

/* Towards zero; what is beyond 64 bits, as the most of them. */
static int64_t whole_of(double value)
{
    return value >= 9223372036854775807.0 ? INT64_MAX : value > 0 ? (int64_t)value : 0;
}

/* As OpenAI writes it: 20ms, 6s, 1m30s, 6m0s, 23h59m0s. */
static char *put_duration(char *at, double seconds)
{
    if (seconds < 1)
        return put_text(put_number(at, whole_of(seconds * 1000)), "ms");
    int64_t whole = whole_of(seconds + 0.999);
    if (whole >= 3600)
        at = put_text(put_number(at, whole / 3600), "h");
    if (whole >= 60) {
        at = put_text(put_number(at, whole % 3600 / 60), "m");
        whole %= 60;
    }
    return put_text(put_number(at, whole), "s");
}

/* What an answer says: of all accounts of a request, the rates that have least left, and the budget that is nearest to its end. */
typedef struct {
    int64_t limit[2]; /* of requests and of tokens; 0 = there is none */
    double left[2], period_s[2];
    int percent, whose, in_tokens; /* percent -1: no budget has passed its soft limit */
} Shown;

#define MOST_PERCENT 999

static void show(Shown *shown, const Account *account)
{
    for (int rate = 0; rate < RATES; rate++) {
        int what = COUNTS_TOKENS(rate);
        if (account->rates[rate] > 0 && (!shown->limit[what] || account->left[rate] < shown->left[what])) {
            shown->limit[what] = account->rates[rate];
            shown->left[what] = account->left[rate];
            shown->period_s[what] = period_s[rate];
        }
    }
    for (int of = 0; of < BUDGETS && account->soft != NONE; of++) {
        const Budget *budget = &account->budgets[of];
        if (budget->amount <= 0 || (__int128)budget->spent * 100 < (__int128)budget->amount * account->soft)
            continue;
        __int128 percent = (__int128)budget->spent * 100 / budget->amount;
        percent = percent < MOST_PERCENT ? percent : MOST_PERCENT;
        if ((int)percent > shown->percent) {
            shown->percent = (int)percent;
            shown->whose = account->whose;
            shown->in_tokens = of == IN_TOKENS;
        }
    }
}

static char *put_lines(char *at, const char *what, int64_t limit, double left, double in_s)
{
    at = put_text(put_text(at, "x-ratelimit-limit-"), what);
    at = put_number(put_text(at, ": "), limit);
    at = put_text(put_text(at, "\r\nx-ratelimit-remaining-"), what);
    at = put_number(put_text(at, ": "), whole_of(left));
    at = put_text(put_text(at, "\r\nx-ratelimit-reset-"), what);
    at = put_duration(put_text(at, ": "), ((double)limit - left) * in_s / (double)limit);
    return put_text(at, "\r\n");
}

#define HEADERS_BYTES 640

static PyObject *headers_of(const Shown *shown)
{
    static const char *const whats[2] = {"requests", "tokens"};
    static const char *const whose[WHOSE] = {"key", "user", "team", "model"};
    char lines[HEADERS_BYTES], *at = lines;
    for (int what = 0; what < 2; what++)
        if (shown->limit[what])
            at = put_lines(at, whats[what], shown->limit[what], shown->left[what], shown->period_s[what]);
    if (shown->percent >= 0) {
        at = put_text(put_text(put_text(at, "x-budget-warning: "), whose[shown->whose & (WHOSE - 1)]), shown->in_tokens ? " tokens " : " ");
        at = put_text(put_number(at, shown->percent), "%\r\n");
    }
    return PyBytes_FromStringAndSize(lines, at - lines);
}

/* The places of these accounts; 0: not so. */
static uint32_t numbers_of(Levels *self, PyObject *given, uint32_t *numbers)
{
    if (!PyTuple_CheckExact(given) || PyTuple_GET_SIZE(given) < 1 || PyTuple_GET_SIZE(given) > MOST_AT_ONCE) {
        PyErr_SetString(PyExc_TypeError, "the accounts are a tuple of 1 to 4 numbers");
        return 0;
    }
    uint32_t size = (uint32_t)PyTuple_GET_SIZE(given);
    for (uint32_t i = 0; i < size; i++) {
        Account *account = account_of(self, PyTuple_GET_ITEM(given, i));
        if (account == NULL)
            return 0;
        numbers[i] = (uint32_t)(account - self->accounts);
    }
    return size;
}

/* headers(numbers: tuple, now_s) -> the x-ratelimit lines and the warning. */
static PyObject *Levels_headers(Levels *self, PyObject *const *args, Py_ssize_t count)
{
    uint32_t numbers[MOST_AT_ONCE];
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "headers(numbers, now_s)");
        return NULL;
    }
    double now_s = PyFloat_AsDouble(args[1]);
    if (now_s == -1.0 && PyErr_Occurred())
        return NULL;
    uint32_t size = numbers_of(self, args[0], numbers);
    if (!size)
        return NULL;
    Shown shown = {.percent = -1};
    lock(self);
    begin(self, numbers, size, 0, self->slot);
    for (uint32_t i = 0; i < size; i++) {
        refill(&self->accounts[numbers[i]], now_s);
        show(&shown, &self->accounts[numbers[i]]);
    }
    commit(self);
    unlock(self);
    return headers_of(&shown);
}

/* deciding */

typedef struct {
    int kind, final;
    double wait_s; /* negative: nobody knows how long */
    uint32_t place; /* of the account that says so */
} Why;

/* A final one stands before all others, then the longest. */
static void consider(Why *why, Why other)
{
    double wait_s = why->wait_s < 0 ? INFINITY : why->wait_s, other_wait_s = other.wait_s < 0 ? INFINITY : other.wait_s;
    if (why->kind == NONE || other.final > why->final || (other.final == why->final && other_wait_s > wait_s))
        *why = other;
}

/* Why the account at this place refuses, if it does and nothing worse is known already. */
static void refusal(const Account *account, uint32_t place, const int64_t *wanted, double now_s, Why *why)
{
    for (int of = 0; of < BUDGETS; of++) {
        const Budget *budget = &account->budgets[of];
        if (budget->amount == NONE || (__int128)budget->spent + budget->reserved + wanted[of] <= budget->amount)
            continue;
        double left_s = budget->end_s - now_s;
        consider(why, (Why){BUDGET + of, 1, isinf(budget->end_s) ? -1 : left_s > 0 ? left_s : 0, place});
    }
    for (int rate = 0; rate < RATES; rate++) {
        int64_t limit = account->rates[rate], want = COUNTS_TOKENS(rate) ? wanted[IN_TOKENS] : 1;
        if (limit == NONE)
            continue;
        if (COUNTS_TOKENS(rate) && want > limit)
            consider(why, (Why){rate, 1, -1, place});
        else if (account->left[rate] < (double)want) {
            double missing = (double)want - account->left[rate];
            consider(why, (Why){rate, 0, limit ? missing * period_s[rate] / (double)limit : period_s[rate], place});
        }
    }
    if (account->concurrency != NONE && account->running >= account->concurrency)
        consider(why, (Why){CONCURRENCY, 0, 1, place});
}

/* What does not fit into 64 bits is not counted, so that all that is can be taken off again. */
static int64_t countable(Levels *self, const uint32_t *numbers, uint32_t size, int of, int64_t wanted)
{
    for (uint32_t i = 0; i < size; i++) {
        int64_t room = INT64_MAX - self->accounts[numbers[i]].budgets[of].reserved;
        wanted = wanted < room ? wanted : room;
    }
    return wanted;
}

/* The step itself: the record of the reservation; 0: `why` says why not, or there is no room. */
static uint32_t reserve(Levels *self, const uint32_t *numbers, uint32_t size, const int64_t *wanted, double now_s, Why *why)
{
    uint32_t number = next_held(self);
    begin(self, numbers, size, number, self->slot);
    for (uint32_t i = 0; i < size; i++) {
        refill(&self->accounts[numbers[i]], now_s);
        refusal(&self->accounts[numbers[i]], i, wanted, now_s, why);
    }
    if (why->kind != NONE || !number) {
        commit(self);
        return 0;
    }
    int64_t tokens = countable(self, numbers, size, IN_TOKENS, wanted[IN_TOKENS]);
    int64_t cost_pusd = countable(self, numbers, size, MONEY, wanted[MONEY]);
    Held *held = take_held(self, number);
    held->count = size;
    held->tokens = tokens;
    held->cost_pusd = cost_pusd;
    for (uint32_t i = 0; i < size; i++) {
        Account *account = &self->accounts[numbers[i]];
        held->accounts[i] = numbers[i];
        for (int rate = 0; rate < RATES; rate++)
            account->left[rate] -= COUNTS_TOKENS(rate) ? (double)tokens : 1;
        account->running++;
        account->budgets[MONEY].reserved += cost_pusd;
        account->budgets[IN_TOKENS].reserved += tokens;
    }
    commit(self);
    return number;
}

/* reserve(numbers: tuple, tokens, cost_pusd, now_s) -> Permit, or (kind, wait_s | None, final, place in numbers, headers). */
static PyObject *Levels_reserve(Levels *self, PyObject *const *args, Py_ssize_t count)
{
    uint32_t numbers[MOST_AT_ONCE];
    int64_t wanted[BUDGETS];
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "reserve(numbers, tokens, cost_pusd, now_s)");
        return NULL;
    }
    wanted[IN_TOKENS] = PyLong_AsLongLong(args[1]);
    if (wanted[IN_TOKENS] == -1 && PyErr_Occurred())
        return NULL;
    wanted[MONEY] = PyLong_AsLongLong(args[2]);
    if (wanted[MONEY] == -1 && PyErr_Occurred())
        return NULL;
    double now_s = PyFloat_AsDouble(args[3]);
    if (now_s == -1.0 && PyErr_Occurred())
        return NULL;
    uint32_t size = numbers_of(self, args[0], numbers);
    if (!size)
        return NULL;
    Permit *permit = PyObject_New(Permit, &PermitType);
    if (permit == NULL)
        return NULL;
    permit->levels = NULL;
    permit->headers = NULL;
    permit->held = 0;
    if (!attached(self)) { /* converting the numbers may have run Python */
        Py_DECREF(permit);
        return NULL;
    }

    Why why = {.kind = NONE};
    Shown shown = {.percent = -1};
    lock(self);
    uint32_t number = reserve(self, numbers, size, wanted, now_s, &why);
    for (uint32_t i = 0; i < size; i++)
        show(&shown, &self->accounts[numbers[i]]);
    unlock(self);

    if (number) { /* from here on, losing the permit settles it */
        permit->levels = (Levels *)Py_NewRef(self);
        permit->held = number;
    }
    PyObject *headers = headers_of(&shown);
    if (number && headers != NULL) {
        permit->headers = headers;
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
    return Py_BuildValue("(iNNIN)", why.kind, wait_s, PyBool_FromLong(why.final), why.place, headers);
}

/* Once: the permit lets go of the levels. */
static void end(Permit *self, const int64_t *used)
{
    Levels *levels = self->levels;
    self->levels = NULL;
    if (levels == NULL)
        return;
    if (levels->memory != NULL) {
        const Held *held = &levels->held[self->held];
        lock(levels);
        settle(levels, self->held, used != NULL ? used[0] : held->tokens, used != NULL ? used[1] : held->cost_pusd, 0);
        unlock(levels);
    }
    Py_DECREF(levels);
}

static PyObject *Permit_settle(Permit *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "settle(tokens, cost_pusd)");
        return NULL;
    }
    int64_t used[2];
    for (int i = 0; i < 2; i++) {
        used[i] = PyLong_AsLongLong(args[i]);
        if (used[i] == -1 && PyErr_Occurred())
            return NULL;
    }
    end(self, used);
    Py_RETURN_NONE;
}

/* One that was lost is settled as that of a killed process is. */
static void Permit_dealloc(Permit *self)
{
    end(self, NULL);
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

/* state(number) -> (running, reserved_pusd, spent_pusd, reserved_tokens, spent_tokens, end_s of the window of money, of tokens, then what is
 * left of rpm, tpm, rpd, tpd as of the last step). */
static PyObject *Levels_state(Levels *self, PyObject *number)
{
    Account *account = account_of(self, number);
    if (account == NULL)
        return NULL;
    lock(self);
    Account copy = *account;
    unlock(self);
    const Budget *money = &copy.budgets[MONEY], *in_tokens = &copy.budgets[IN_TOKENS];
    return Py_BuildValue(
        "(LLLLLdddddd)", (long long)copy.running, (long long)money->reserved, (long long)money->spent, (long long)in_tokens->reserved,
        (long long)in_tokens->spent, money->end_s, in_tokens->end_s, copy.left[REQUESTS], copy.left[TOKENS], copy.left[REQUESTS_DAY],
        copy.left[TOKENS_DAY]);
}

static PyMethodDef levels_methods[] = {
    {"open", (PyCFunction)(void (*)(void))Levels_open, METH_FASTCALL, "The number of an account."},
    {"find", (PyCFunction)Levels_find, METH_O, "The number of an account that is there."},
    {"change", (PyCFunction)(void (*)(void))Levels_change, METH_FASTCALL, "Put limits in force."},
    {"window", (PyCFunction)(void (*)(void))Levels_window, METH_FASTCALL, "Begin a budget's window."},
    {"counted", (PyCFunction)(void (*)(void))Levels_counted, METH_FASTCALL, "What was counted of a budget's window."},
    {"reconcile", (PyCFunction)(void (*)(void))Levels_reconcile, METH_FASTCALL, "What the books say of a budget's window."},
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
    _Static_assert(sizeof(Header) <= HEADER_BYTES && offsetof(Header, lock) == 16, "the header has its room");
    errno = pthread_atfork(NULL, NULL, forget_in_child);
    if (errno)
        return PyErr_SetFromErrno(PyExc_OSError);
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
