/* The lines of a ledger segment: the form in C of lines.py, which says what they are. Taken in its place where it is compiled.
 *
 * A line is put together in a buffer on the stack, sized beforehand for the longest that its values can become: a byte of text takes at
 * most six (\u001f), a number at most 24. Raises what orjson would: UnicodeEncodeError for a lone surrogate, OverflowError for a number
 * beyond 64 bits, TypeError for a value of another type.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
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

static PyObject *line(char kind, const char *fields, PyObject *const *args, Py_ssize_t count)
{
    const char *texts[MOST_FIELDS];
    Py_ssize_t sizes[MOST_FIELDS];
    Py_ssize_t room = 8;
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
    at = buffer;
    memcpy(at, "[\"", 2);
    at[2] = kind;
    at[3] = '"';
    at += 4;
    for (Py_ssize_t i = 0; i < count; i++) {
        *at++ = ',';
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
    memcpy(at, "]\n", 2);
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
    return line('B', BEGIN_FIELDS, args, count);
}

static PyObject *end_line(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return line('E', END_FIELDS, args, count);
}

static PyMethodDef methods[] = {
    {"begin_line", (PyCFunction)(void (*)(void))begin_line, METH_FASTCALL, "Admission."},
    {"end_line", (PyCFunction)(void (*)(void))end_line, METH_FASTCALL, "The ending: the whole record, in the order of its fields."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "lines", "The form in C of lines.py.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_lines(void)
{
    return PyModule_Create(&module);
}
