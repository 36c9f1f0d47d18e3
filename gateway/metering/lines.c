/* The lines of a ledger segment: the form in C of lines.py, which says what they are. Taken in its place where it is compiled.
 *
 * Writing. A line is put together in a buffer on the stack, sized beforehand for the longest that its values can become: a byte of text takes at
 * most six (\u001f), a number at most 24. Raises what orjson would: UnicodeEncodeError for a lone surrogate, OverflowError for a number
 * beyond 64 bits, TypeError for a value of another type.
 *
 * Reading. A field that has the same bytes as one of the last few different ones (most do) is the same object: the comparison is all that it
 * costs, and what groups rows by these values finds them hashed. What is not plain (escapes, numbers in other forms than ours) is given to
 * orjson.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_BYTES 24
#define STACK_BYTES 4096
#define MOST_FIELDS 27
#define SIX_PLACES 1e6
#define MOST_EXACT 9e15 /* beyond it a double has no six places */

static const char HEX[] = "0123456789abcdef";

/* One letter a field: s text or null, i whole number, f number to six places or null. */
static const char BEGIN_FIELDS[] = "sfssssisiiiisss";
static const char END_FIELDS[] = "sfssssissiisiisiffffsssiiss";
static const char REQUEST_FIELDS[] = "fsssssisiiiff";
static const char *const REQUEST_NAMES[] = {
    "\"at\":", "\"request_id\":", "\"operation\":", "\"model\":", "\"backend\":", "\"key_id\":", "\"status\":", "\"ending\":",
    "\"attempts\":", "\"prompt_tokens\":", "\"completion_tokens\":", "\"duration_ms\":", "\"ttft_ms\":",
};
static const char ENDINGS[2][3] = {"]\n", "}\n"};
#define NAMES_BYTES 256 /* more than all of them take */

static char *put_whole(char *at, int64_t value)
{
    char digits[20];
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    int count = 0;
    if (value < 0)
        *at++ = '-';
    do {
        digits[count++] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    while (count)
        *at++ = digits[--count];
    return at;
}

/* As a shortest decimal that has at most six places and at least one: 1.5, 2.0, 1795242728.437149. NULL: not of this kind. */
static char *put_places(char *at, double value)
{
    if (!(fabs(value) * SIX_PLACES < MOST_EXACT))
        return NULL;
    int64_t scaled = llround(value * SIX_PLACES);
    uint64_t size = scaled < 0 ? 0 - (uint64_t)scaled : (uint64_t)scaled;
    if (scaled < 0)
        *at++ = '-';
    at = put_whole(at, (int64_t)(size / 1000000));
    *at++ = '.';
    uint32_t places = (uint32_t)(size % 1000000);
    for (int place = 5; place >= 0; place--) {
        at[place] = (char)('0' + places % 10);
        places /= 10;
    }
    at += 6;
    while (at[-1] == '0' && at[-2] != '.')
        at--;
    return at;
}

static char *put_text(char *at, const unsigned char *text, Py_ssize_t size)
{
    *at++ = '"';
    for (Py_ssize_t i = 0; i < size; i++) {
        unsigned char byte = text[i];
        if (byte >= 0x20 && byte != '"' && byte != '\\') {
            *at++ = (char)byte;
            continue;
        }
        *at++ = '\\';
        switch (byte) {
        case '"': *at++ = '"'; break;
        case '\\': *at++ = '\\'; break;
        case '\b': *at++ = 'b'; break;
        case '\t': *at++ = 't'; break;
        case '\n': *at++ = 'n'; break;
        case '\f': *at++ = 'f'; break;
        case '\r': *at++ = 'r'; break;
        default:
            memcpy(at, "u00", 3);
            at[3] = HEX[byte >> 4];
            at[4] = HEX[byte & 15];
            at += 5;
        }
    }
    *at++ = '"';
    return at;
}

static PyObject *line(const char *start, const char *fields, const char *const *names, PyObject *const *args, Py_ssize_t count)
{
    const char *texts[MOST_FIELDS];
    Py_ssize_t sizes[MOST_FIELDS];
    Py_ssize_t room = NAMES_BYTES + 32;
    char stack[STACK_BYTES], *buffer = stack, *at;

    if (count != (Py_ssize_t)strlen(fields)) {
        PyErr_Format(PyExc_TypeError, "a line of this kind has %zu values, not %zd", strlen(fields), count);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        room += NUMBER_BYTES + 3;
        if (fields[i] == 's' && args[i] != Py_None) {
            texts[i] = PyUnicode_AsUTF8AndSize(args[i], &sizes[i]);
            if (texts[i] == NULL)
                return NULL;
            room += 6 * sizes[i];
        }
    }
    if (room > STACK_BYTES && (buffer = PyMem_Malloc((size_t)room)) == NULL)
        return PyErr_NoMemory();
    at = stpcpy(buffer, start);
    for (Py_ssize_t i = 0; i < count; i++) {
        *at++ = ',';
        if (names != NULL)
            at = stpcpy(at, names[i]);
        if (args[i] == Py_None) {
            memcpy(at, "null", 4);
            at += 4;
        } else if (fields[i] == 's') {
            at = put_text(at, (const unsigned char *)texts[i], sizes[i]);
        } else if (fields[i] == 'i') {
            int64_t value = PyLong_AsLongLong(args[i]);
            if (value == -1 && PyErr_Occurred())
                goto failed;
            at = put_whole(at, value);
        } else {
            double value = PyFloat_AsDouble(args[i]);
            if (value == -1.0 && PyErr_Occurred())
                goto failed;
            char *end = put_places(at, value);
            if (end == NULL) {
                memcpy(at, "null", 4);
                end = at + 4;
            }
            at = end;
        }
    }
    memcpy(at, ENDINGS[names != NULL], 2);
    at += 2;
    PyObject *written = PyBytes_FromStringAndSize(buffer, at - buffer);
    if (buffer != stack)
        PyMem_Free(buffer);
    return written;
failed:
    if (buffer != stack)
        PyMem_Free(buffer);
    return NULL;
}

static PyObject *begin_line(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return line("[\"B\"", BEGIN_FIELDS, NULL, args, count);
}

static PyObject *end_line(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return line("[\"E\"", END_FIELDS, NULL, args, count);
}

static PyObject *request_line(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return line("{\"event\":\"request\"", REQUEST_FIELDS, REQUEST_NAMES, args, count);
}

/* Reading */

typedef struct {
    const char *text;
    Py_ssize_t size;
} span;

/* A value, borrowed, and the bytes that it was read from. */
typedef struct {
    span field;
    PyObject *value;
} known;
#define SEEN 64

static PyObject *loads; /* orjson.loads */

static int torn(void)
{
    PyErr_SetString(PyExc_ValueError, "not lines as this version writes them");
    return -1;
}

/* Past the string that begins at `at`, closing quote included; NULL: it does not end. */
static const char *past_text(const char *at, const char *end)
{
    for (at++; at < end; at++) {
        if (*at == '"')
            return at + 1;
        if (*at == '\\')
            at++;
    }
    return NULL;
}

static PyObject *by_orjson(span field)
{
    PyObject *bytes = PyBytes_FromStringAndSize(field.text, field.size);
    if (bytes == NULL)
        return NULL;
    PyObject *value = PyObject_CallOneArg(loads, bytes);
    Py_DECREF(bytes);
    return value;
}

/* Is it a string that says what it means, without escapes? What JSON does not allow is none. */
static int is_plain(span field)
{
    for (const char *c = field.text + 1; c < field.text + field.size - 1; c++)
        if (*c == '\\' || (unsigned char)*c < 0x20)
            return 0;
    return 1;
}

static PyObject *value_of(span field, char kind)
{
    char copy[NUMBER_BYTES + 1];
    const char *at = field.text;

    if (field.size == 4 && memcmp(at, "null", 4) == 0)
        Py_RETURN_NONE;
    if (*at == '"')
        return is_plain(field) ? PyUnicode_DecodeUTF8(at + 1, field.size - 2, NULL) : by_orjson(field);
    if (field.size > NUMBER_BYTES)
        return by_orjson(field);
    memcpy(copy, at, (size_t)field.size);
    copy[field.size] = 0;
    const char *digits = copy + (*copy == '-');
    size_t whole = strspn(digits, "0123456789");
    if (strlen(copy) != (size_t)field.size || whole == 0 || whole > 18 || (*digits == '0' && whole > 1)) /* neither JSON's zeros nor more than 64 bits */
        return by_orjson(field);
    if (digits[whole] == 0 && kind == 'i')
        return PyLong_FromLongLong(strtoll(copy, NULL, 10));
    if (digits[whole] == '.' && kind == 'f') {
        const char *places = digits + whole + 1;
        size_t count = strspn(places, "0123456789");
        if (count > 0 && places[count] == 0) {
            double value = PyOS_string_to_double(copy, NULL, NULL);
            return value == -1.0 && PyErr_Occurred() ? NULL : PyFloat_FromDouble(value);
        }
    }
    return by_orjson(field);
}

/* Ours in the usual form, exactly: as many digits as a double holds, over a power of ten that it holds. 0: in another form. */
static int plain_float(span field, double *value)
{
    static const double TENS[] = {1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6};
    const char *at = field.text, *end = field.text + field.size;
    int negative = *at == '-', places = 0;
    int64_t digits = 0;

    at += negative;
    if (end - at > 17 || end - at < 3 || (*at == '0' && at[1] != '.'))
        return 0;
    const char *whole = at;
    while (at < end && *at >= '0' && *at <= '9')
        digits = 10 * digits + (*at++ - '0');
    if (at == whole || at == end || *at != '.')
        return 0;
    for (at++; at < end && *at >= '0' && *at <= '9'; places++)
        digits = 10 * digits + (*at++ - '0');
    if (at < end || places < 1 || places > 6 || digits > ((int64_t)1 << 53))
        return 0;
    *value = (double)digits / TENS[places];
    if (negative)
        *value = -*value;
    return 1;
}

/* Where a value of these bytes is remembered. */
static size_t place_of(span field)
{
    uint64_t first = 0, last = 0;
    size_t size = (size_t)field.size < 8 ? (size_t)field.size : 8;
    memcpy(&first, field.text, size);
    memcpy(&last, field.text + field.size - size, size);
    return (size_t)(((first * 31 + last) * 0x9E3779B97F4A7C15u) >> 58);
}

/* Appends the values of one END to the columns. `seen`: values of its fields in ENDs before. `id`: the line's request id, as it stands there. */
static int take_end(const char *at, const char *end, PyObject *const *columns, known (*seen)[SEEN], PyObject *id)
{
    const Py_ssize_t fields = (Py_ssize_t)sizeof(END_FIELDS) - 1;

    for (Py_ssize_t i = 0; i < fields; i++) {
        if (at >= end)
            return torn();
        const char *past = *at == '"' ? past_text(at, end) : at + 1;
        if (past == NULL || (*at == '"' && past < end && *past != ','))
            return torn();
        while (past < end && *past != ',')
            past++;
        span field = {at, past - at};
        known *one = &seen[i][END_FIELDS[i] == 'f' ? 0 : place_of(field)];
        PyObject *value;
        double number;
        if (one->field.size == field.size && memcmp(at, one->field.text, (size_t)field.size) == 0)
            value = Py_NewRef(one->value);
        else if (i == 0 && is_plain(field))
            value = Py_NewRef(id);
        else if (END_FIELDS[i] == 'f' && plain_float(field, &number))
            value = PyFloat_FromDouble(number);
        else
            value = value_of(field, END_FIELDS[i]);
        if (value == NULL)
            return -1;
        int failed = PyList_Append(columns[i], value);
        Py_DECREF(value);
        if (failed)
            return -1;
        *one = (known){field, value}; /* its column holds it as long as we do */
        at = past + 1;
    }
    return at == end + 1 ? 0 : torn(); /* the last one ends where the line does */
}

static int take_line(const char *at, const char *end, PyObject *const *columns, known (*seen)[SEEN], PyObject *begun, PyObject *begun_before)
{
    if (end - at < 8 || memcmp(at, "[\"", 2) != 0 || memcmp(at + 3, "\",\"", 3) != 0)
        return torn();
    const char *close = memchr(at + 6, '"', (size_t)(end - at - 6));
    if (close == NULL)
        return torn();
    PyObject *request_id = PyUnicode_DecodeUTF8(at + 6, close - at - 6, NULL);
    if (request_id == NULL)
        return -1;
    int failed = -1;
    if (at[2] == 'E' && end[-1] == ']') {
        failed = take_end(at + 5, end - 1, columns, seen, request_id);
        if (!failed) {
            PyObject *named = PyList_GET_ITEM(columns[0], PyList_GET_SIZE(columns[0]) - 1);
            int same = PyObject_RichCompareBool(named, request_id, Py_EQ);
            int there = same == 1 ? PyDict_Contains(begun, request_id) : -1;
            if (there == 1)
                failed = PyDict_DelItem(begun, request_id);
            else if (there == 0)
                failed = PyList_Append(begun_before, request_id);
            else
                failed = same < 0 || PyErr_Occurred() ? -1 : torn();
        }
    } else if (at[2] == 'B') {
        PyObject *text = PyUnicode_DecodeUTF8(at, end - at, NULL);
        if (text != NULL) {
            failed = PyDict_SetItem(begun, request_id, text);
            Py_DECREF(text);
        }
    } else
        failed = torn();
    Py_DECREF(request_id);
    return failed;
}

static PyObject *parse_lines(PyObject *Py_UNUSED(module), PyObject *data)
{
    char *at;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(data, &at, &size) < 0)
        return NULL;
    const char *end = at + size;
    const Py_ssize_t fields = (Py_ssize_t)sizeof(END_FIELDS) - 1;
    PyObject *column[MOST_FIELDS];
    known seen[MOST_FIELDS][SEEN] = {0};
    PyObject *columns = PyList_New(fields), *begun = PyDict_New(), *begun_before = PyList_New(0), *found = NULL;
    if (columns == NULL || begun == NULL || begun_before == NULL)
        goto done;
    for (Py_ssize_t i = 0; i < fields; i++) {
        if ((column[i] = PyList_New(0)) == NULL)
            goto done;
        PyList_SET_ITEM(columns, i, column[i]);
    }
    while (at < end) {
        char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *stop = newline == NULL ? end : newline;
        if (stop > at && take_line(at, stop, column, seen, begun, begun_before) < 0)
            goto done;
        if (newline == NULL)
            break;
        at = newline + 1;
    }
    found = PyTuple_Pack(3, columns, begun, begun_before);
done:
    Py_XDECREF(columns);
    Py_XDECREF(begun);
    Py_XDECREF(begun_before);
    return found;
}

static PyMethodDef methods[] = {
    {"begin_line", (PyCFunction)(void (*)(void))begin_line, METH_FASTCALL, "Admission."},
    {"end_line", (PyCFunction)(void (*)(void))end_line, METH_FASTCALL, "The ending: the whole record, in the order of its fields."},
    {"request_line", (PyCFunction)(void (*)(void))request_line, METH_FASTCALL, "For the request log."},
    {"parse_lines", parse_lines, METH_O, "What whole lines say."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "lines", "The form in C of lines.py.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_lines(void)
{
    PyObject *orjson = PyImport_ImportModule("orjson");
    if (orjson == NULL)
        return NULL;
    loads = PyObject_GetAttrString(orjson, "loads");
    Py_DECREF(orjson);
    return loads == NULL ? NULL : PyModule_Create(&module);
}
